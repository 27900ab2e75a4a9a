// Answers questions as the search page of a built site does: its own scripts and index, without a browser.
// node site_search.js FOLDER, with a list of questions as JSON on standard input; prints the first pages for each.
const fs = require("fs"), path = require("path"), vm = require("vm");

const [site, questions] = [process.argv[2], fs.readFileSync(0, "utf8")];
const nothing = () => ({ addEventListener() {}, appendChild() {} });
const context = vm.createContext({
  URLSearchParams, location: { search: "" }, localStorage: {}, SPHINX_HIGHLIGHT_ENABLED: false, _ready() {},
  document: {
    addEventListener() {}, querySelector: nothing, createElement: nothing, getElementById: nothing,
  },
  DOCUMENTATION_OPTIONS: { FILE_SUFFIX: ".html", LINK_SUFFIX: ".html" },
});
context.window = context;
for (const name of ["_static/language_data.js", "_static/searchtools.js", "searchindex.js"]) {
  vm.runInContext(fs.readFileSync(path.join(site, name), "utf8"), context, name);
}
console.log(vm.runInContext(`
  const pagesFor = (question) => {
    const results = Search._performSearch(...Search._parseQuery(question));
    return [...new Set(results.toReversed().map(([page]) => page))];
  };
  JSON.stringify(${questions}.map((question) => pagesFor(question).slice(0, 3)));
`, context));
