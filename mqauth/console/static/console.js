// Progressive only: every page works without it.
"use strict";

const editing = (element) => /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || editing(event.target)) return;
  const page = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
  if (page) return page.click();
  if (event.key !== "j" && event.key !== "k") return;
  const links = [...document.querySelectorAll("a.open")];
  const at = links.indexOf(document.activeElement);
  const next = links[event.key === "j" ? at + 1 : Math.max(0, at - 1)];
  if (next) next.focus();
});

const job = document.querySelector("[data-job]");

async function watch() {
  try {
    const answer = await fetch("/job.json", { credentials: "same-origin" });
    const now = await answer.json();
    if (!now.running || now.id !== job.dataset.job) return location.reload();
    const seen = document.getElementById("seen");
    if (seen) seen.textContent = now.seen;
    const bar = document.getElementById("bar");
    if (now.total) bar.value = now.seen;
  } catch {
    // The console may be restarting; the next look tells.
  }
  setTimeout(watch, 500);
}

if (job) setTimeout(watch, 300);
