"use strict";
// Gallery: search, sort, filters, layers, CSV, enlarged view. The facts about the images are JSON in
// the page; a card and its facts have the same index. Without this script the page shows all images
// with their boxes, but no masks and heatmaps.

const $ = (id) => document.getElementById(id);
const cards = $("cards");
const form = document.querySelector(".controls");
const viewer = $("viewer");
const document_facts = cards ? JSON.parse($("facts").textContent) : { classes: [], cards: [] };
const facts = document_facts.cards;
const classes = document_facts.classes;
const allCards = cards ? [...cards.children] : [];
facts.forEach((fact, index) => { fact.index = index; fact.card = allCards[index]; });
let visible = facts; // those that pass the filters, sorted
let cell = null; // [column, true class, predicted class] of a confusion matrix
let current = 0; // index of the enlarged image in `visible`

const value = (id) => ($(id) ? $(id).value : "");
const minimum = () => ($("threshold") ? Number($("threshold").value) : -Infinity);
const boxScores = (fact) => (fact.boxes || []).map((box) => box[1]);

// Key of the option in the page → whether an image passes, at the minimum score of boxes.
const STATUSES = {
  "ok": (fact) => fact.status === "ok",
  "failed": (fact) => fact.status !== "ok",
  "correct": (fact) => fact.correct === true,
  "wrong": (fact) => fact.correct === false,
  "boxes": (fact, low) => boxScores(fact).some((score) => score >= low),
  "no-boxes": (fact, low) => fact.boxes !== null && !boxScores(fact).some((score) => score >= low),
  "false-positive": (fact, low) => isNumber(fact.false_positive) && fact.false_positive >= low,
  "miss": (fact, low) => fact.missed === true || (isNumber(fact.found) && fact.found < low),
};

// Key of the option → number or text to sort by, ascending; images without one are last.
const SORTS = {
  order: (fact) => fact.index,
  name: (fact) => fact.id,
  agreement: (fact) => fact.agreement,
  loss: (fact) => negative(fact.loss),
  low: (fact) => fact.score,
  high: (fact) => negative(fact.score),
  large: (fact) => -fact.width * fact.height,
  small: (fact) => fact.width * fact.height,
};

function isNumber(number) { return typeof number === "number"; }
function negative(number) { return isNumber(number) ? -number : null; }

function hasClass(fact, index, low) {
  return fact.classes.includes(index)
    || (fact.boxes || []).some(([box, score]) => box === index && score >= low);
}

function inCell(fact) {
  return (fact.cells || []).some(([column, ...indices]) => column === cell[0]
    && indices.every((index, i) => (index < 0 ? "" : classes[index]) === cell[i + 1]));
}

function passes(fact, filter) {
  if (filter.name && !fact.id.toLowerCase().includes(filter.name)) return false;
  if (filter.class !== "" && !hasClass(fact, Number(filter.class), filter.low)) return false;
  const status = STATUSES[filter.status] || ((other) => other.changes.includes(filter.status));
  if (filter.status && !status(fact, filter.low)) return false;
  if (filter.from !== "" && !(isNumber(fact.score) && fact.score >= Number(filter.from))) return false;
  if (filter.to !== "" && !(isNumber(fact.score) && fact.score <= Number(filter.to))) return false;
  return !cell || inCell(fact);
}

function compare(a, b) {
  if (a.key === b.key) return a.fact.index - b.fact.index;
  if (a.key === null || a.key === undefined) return 1;
  if (b.key === null || b.key === undefined) return -1;
  return a.key < b.key ? -1 : 1;
}

function applyFilters() {
  const filter = {
    name: value("search").trim().toLowerCase(), class: value("class"), status: value("status"),
    from: value("from"), to: value("to"), low: minimum(),
  };
  const key = SORTS[value("sort")];
  visible = facts.filter((fact) => passes(fact, filter))
    .map((fact) => ({ fact, key: key(fact) })).sort(compare).map((item) => item.fact);
  for (const card of allCards) card.hidden = true;
  for (const fact of visible) fact.card.hidden = false;
  cards.append(...visible.map((fact) => fact.card));
  $("shown").textContent = `${visible.length} of ${facts.length} images shown`;
  $("cell").hidden = !cell;
  if (cell) $("cell").textContent = `true ${cell[1] || "none"}, predicted ${cell[2] || "none"}`;
}

function applyThreshold() {
  const low = minimum();
  if ($("threshold-value")) $("threshold-value").value = low.toFixed(2);
  for (const element of cards.querySelectorAll("[data-score]")) {
    element.classList.toggle("below", Number(element.dataset.score) < low);
  }
  for (const miss of cards.querySelectorAll("[data-found]")) {
    miss.classList.toggle("below", Number(miss.dataset.found) >= low);
  }
  for (const bar of document.querySelectorAll(".column[data-score]")) {
    bar.classList.toggle("below", Number(bar.dataset.score) < low);
  }
}

function showLayers() {
  for (const box of form.querySelectorAll("[data-layer]")) {
    document.body.classList.toggle("show-" + box.dataset.layer, box.checked);
  }
  if ($("strength")) document.body.style.setProperty("--strength", $("strength").value);
}

function applyAll() {
  showLayers();
  applyThreshold();
  applyFilters();
}

// A text that starts like a formula gets an apostrophe, so that a spreadsheet does not run it.
function csvField(field) {
  const text = field === null || field === undefined ? "" : String(field);
  const safe = !isNumber(field) && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const COLUMNS = ["id", "uri", "status", "error", "width", "height", "predicted", "truth", "correct",
  "score", "agreement", "loss", "changes"];

function asCsv() {
  const used = COLUMNS.filter((column) => column !== "changes"
    ? facts.some((fact) => column in fact) : facts.some((fact) => fact.changes.length));
  const rows = visible.map((fact) => used.map((column) =>
    csvField(column === "changes" ? fact.changes.join(" ") : fact[column])));
  const head = used.map((column) => (column === "id" ? "image_id" : column));
  return [head, ...rows].map((row) => row.join(",") + "\r\n").join("");
}

function downloadCsv() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", asCsv()], { type: "text/csv" }));
  link.download = "images.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function enlarge(index) {
  current = (index + visible.length) % visible.length;
  const copy = visible[current].card.cloneNode(true);
  for (const image of copy.querySelectorAll("img")) image.loading = "eager";
  copy.querySelector(".open").replaceWith(copy.querySelector(".stage"));
  $("viewer-body").replaceChildren(copy);
  $("viewer-place").textContent = `${current + 1} of ${visible.length}`;
}

if (cards) {
  applyAll();
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.dataset.layer || event.target.id === "strength") showLayers();
    else if (event.target.id === "threshold") { applyThreshold(); applyFilters(); }
    else applyFilters();
  });
  form.addEventListener("reset", () => { cell = null; setTimeout(applyAll); });
  $("csv").addEventListener("click", downloadCsv);
  for (const link of document.querySelectorAll("[data-cell]")) {
    link.addEventListener("click", () => { cell = JSON.parse(link.dataset.cell); applyFilters(); });
  }
  cards.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (!button) return;
    enlarge(visible.findIndex((fact) => fact.card === button.closest(".card")));
    viewer.showModal();
  });
  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("[data-go]");
    if (event.target === viewer || (button && button.dataset.go === "0")) viewer.close();
    else if (button) enlarge(current + Number(button.dataset.go));
  });
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) enlarge(current + step);
  });
  viewer.addEventListener("close", () => {
    if (visible[current]) visible[current].card.querySelector(".open").focus();
  });
}
