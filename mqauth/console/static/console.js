// Progressive only: every page works without it.
"use strict";

const editing = (element) => /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName) && element.type !== "checkbox";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || editing(event.target)) return;
  const page = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"], a[data-step="${CSS.escape(event.key)}"]`);
  if (page) return page.click();
  if (event.key === "/" && document.getElementById("search")) {
    event.preventDefault();
    return document.getElementById("search").focus();
  }
  const row = document.activeElement.closest("tr");
  if (event.key === "x" && row && row.querySelector("[name=marks]")) return row.querySelector("[name=marks]").click();
  if (event.key !== "j" && event.key !== "k") return;
  const links = [...document.querySelectorAll("a.open")];
  const at = links.findIndex((link) => link.closest("tr") === row);
  const next = links[event.key === "j" ? at + 1 : Math.max(0, at - 1)];
  if (next) next.focus();
});

// How many rows are chosen, and all of this page at once.
const boxes = [...document.querySelectorAll("input[name=marks][type=checkbox]")];
const head = document.getElementById("choose");
const told = document.getElementById("count");

function tell() {
  const chosen = boxes.filter((box) => box.checked).length;
  if (told) told.textContent = `${chosen} chosen:`;
  const all = document.getElementById("all");
  if (all) all.checked = chosen === boxes.length;
}

if (head && boxes.length) {
  head.innerHTML = '<input type="checkbox" id="all" aria-label="Choose all on this page">';
  document.getElementById("all").addEventListener("change", (event) => {
    for (const box of boxes) box.checked = event.target.checked;
    tell();
  });
  for (const box of boxes) box.addEventListener("change", tell);
  // A page that the browser shows again may still have its ticks.
  addEventListener("pageshow", tell);
}

for (const place of document.querySelectorAll(".copy")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(place.querySelector("code").textContent);
    button.textContent = "Copied";
  });
  if (navigator.clipboard) place.append(button);
}

const job = document.querySelector("[data-job]");

async function watch() {
  try {
    const answer = await fetch(job.dataset.progress, { credentials: "same-origin" });
    const now = await answer.json();
    const turned = String(now.acted) !== job.dataset.acted || String(now.lost) !== job.dataset.lost;
    if (!now.running || now.id !== job.dataset.job || turned) return location.reload();
    const seen = document.getElementById("seen");
    if (seen) seen.textContent = now.seen;
    const bar = document.getElementById("bar");
    if (now.total && !bar.hasAttribute("max")) return location.reload();
    if (now.total) bar.max = now.total;
    if (now.total) bar.value = now.seen;
  } catch {
    // The console may be restarting; the next look tells.
  }
  setTimeout(watch, 500);
}

if (job) setTimeout(watch, 300);

// A page that grows while letters are read is fetched again, unless somebody is at work in it.
async function grow() {
  const live = document.querySelector("[data-live]");
  if (!live) return;
  try {
    const answer = await fetch(location.href, { credentials: "same-origin" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const next = fresh.getElementById("main");
    if (answer.ok && next && !live.contains(document.activeElement)) {
      if (!next.querySelector("[data-live]")) return location.reload();
      live.replaceWith(document.adoptNode(next.querySelector("[data-live]")));
    }
  } catch {
    // The console may be restarting; the next look tells.
  }
  setTimeout(grow, 1000);
}

setTimeout(grow, 1000);
