// Ranks the results of the site's search: who searches has a task, so pages that help with one come first.
const _PAGES = [
  ["docs/troubleshooting", 9],
  ["docs/how-to/", 8],
  ["docs/operations-kafka", 9],
  ["docs/operations", 7],
  ["docs/reference/reasons", 7],
  ["docs/reference/supported-versions", 6],
  ["docs/review", 6],
  ["docs/rollout", 6],
  ["docs/logs", 5],
  ["docs/audit", 9],
  ["docs/confluent", 8],
  ["docs/tutorials/", 4],
  ["docs/sizing", 4],
  ["docs/reference/api", -6],
  ["docs/reference/", 1],
  ["docs/wire-profile", -4],
  ["docs/architecture", -6],
  ["docs/README", -6],
  ["CHANGELOG", -12],
  [".github/", -12],
];

var Scorer = {
  score: ([page, , , , score]) => {
    const rule = _PAGES.find(([beginning]) => page.startsWith(beginning));
    return score + (rule ? rule[1] : 3);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
