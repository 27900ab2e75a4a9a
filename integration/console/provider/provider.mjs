// The OpenID Provider of the console's login test: oidc-provider, its development login form, accounts in a file.
// node provider.mjs SETTINGS.json; prints its issuer when it listens.
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import Provider from "oidc-provider";

const settings = JSON.parse(readFileSync(process.argv[2], "utf8"));
const provider = new Provider(settings.issuer, {
  clients: settings.clients,
  jwks: settings.jwks,
  cookies: { keys: [settings.cookieKey] },
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["groups"] },
  conformIdTokenClaims: false, // claims of the scopes stand in the ID token, as most providers put them there
  pkce: { required: () => true },
  features: { devInteractions: { enabled: true }, rpInitiatedLogout: { enabled: true } },
  findAccount: (_, id) =>
    Object.hasOwn(settings.accounts, id)
      ? { accountId: id, claims: () => ({ sub: id, ...settings.accounts[id] }) }
      : undefined,
});
const { port, hostname } = new URL(settings.issuer);
createServer({ cert: readFileSync(settings.cert), key: readFileSync(settings.key) }, provider.callback()).listen(
  Number(port), hostname, () => console.log(settings.issuer),
);
