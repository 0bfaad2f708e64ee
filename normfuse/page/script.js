"use strict";
// The page is complete without this: everything is shown, and nothing can be filtered.
document.documentElement.classList.add("scripted");

const groups = [...document.querySelectorAll("tbody.group")];

function open(group, wanted) {
  const button = group.querySelector("button.more");
  if (button) button.setAttribute("aria-expanded", String(wanted));
  group.classList.toggle("open", wanted);
}

for (const group of groups) {
  const button = group.querySelector("button.more");
  if (button) {
    button.addEventListener("click", () => open(group, !group.classList.contains("open")));
  }
}

function follow() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const group = target && target.closest("tbody.group");
  if (!group) return;
  reset();
  open(group, true);
  group.scrollIntoView({ block: "center" });
}

const filters = document.querySelector("form.filters");
const search = filters && filters.querySelector("input[type=search]");
const toggles = filters ? [...filters.querySelectorAll("input[type=checkbox]")] : [];

function filter() {
  const words = search.value.trim().toLowerCase();
  const allowed = new Set(toggles.filter((toggle) => toggle.checked).map((toggle) => toggle.value));
  let shown = 0;
  for (const group of groups) {
    const fits = allowed.has(group.dataset.action) && group.dataset.words.toLowerCase().includes(words);
    group.hidden = !fits;
    if (fits) shown += Number(group.dataset.count);
  }
  filters.querySelector("output").textContent = `${shown} shown`;
}

function reset() {
  if (!filters) return;
  filters.reset();
  filter();
}

if (filters) {
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filter();
}

// What is pointed at or focused in one figure is marked in the others.
function mark(event) {
  const found = event.target.closest("[data-group]");
  const lit = found ? found.dataset.group : "";
  for (const other of document.querySelectorAll("[data-group]")) {
    other.classList.toggle("lit", lit !== "" && other.dataset.group === lit);
  }
}

for (const name of ["pointerover", "focusin"]) document.addEventListener(name, mark);
window.addEventListener("hashchange", follow);
follow();
