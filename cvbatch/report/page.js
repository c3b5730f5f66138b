"use strict";
// Layer switches, score slider and enlarged view. Without this script the page shows everything except
// masks and heatmaps.

const main = document.getElementById("main");
const cards = document.getElementById("cards");
const allCards = cards ? [...cards.children] : [];
const threshold = document.getElementById("threshold");
const strength = document.getElementById("strength");
const group = document.getElementById("group");
const classFilter = document.getElementById("class");
const viewer = document.getElementById("viewer");
let current = 0; // index of the enlarged card among the visible ones

function showLayers() {
  for (const box of document.querySelectorAll("[data-layer]")) {
    document.body.classList.toggle("show-" + box.dataset.layer, box.checked);
  }
}

function applyThreshold() {
  const minimum = Number(threshold.value);
  document.getElementById("threshold-value").value = minimum.toFixed(2);
  for (const element of document.querySelectorAll("[data-score]:not(.card)")) {
    element.classList.toggle("below", Number(element.dataset.score) < minimum);
  }
}

function sortKey(key) {
  if (key === "low") return (card) => Number(card.dataset.score);
  if (key === "truth") return (card) => Number(card.dataset.agreement);
  return (card) => Number(card.dataset.number);
}

function filterCards() {
  const key = group ? group.value : "";
  const name = classFilter ? classFilter.value : "";
  const by = sortKey(key);
  let count = 0;
  for (const card of [...allCards].sort((a, b) => by(a) - by(b))) {
    const inGroup = !key || card.dataset.groups.split(" ").includes(key);
    const inClass = !name || card.dataset.classes.split("\n").includes(name);
    card.hidden = !(inGroup && inClass);
    count += card.hidden ? 0 : 1;
    cards.append(card);
  }
  document.getElementById("shown").textContent = `${count} of ${allCards.length} images shown`;
}

function visibleCards() {
  return [...cards.children].filter((card) => !card.hidden);
}

function enlarge(index) {
  const visible = visibleCards();
  current = (index + visible.length) % visible.length;
  const copy = visible[current].cloneNode(true);
  const stage = copy.querySelector(".stage");
  copy.querySelector(".open").replaceWith(stage);
  document.getElementById("viewer-body").replaceChildren(copy);
  document.getElementById("viewer-place").textContent = `${current + 1} of ${visible.length}`;
}

if (cards) {
  showLayers();
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  for (const box of document.querySelectorAll("[data-layer]")) {
    box.addEventListener("change", showLayers);
  }
  if (threshold) threshold.addEventListener("input", applyThreshold);
  if (strength) {
    strength.addEventListener("input", () => main.style.setProperty("--strength", strength.value));
  }
  if (group) group.addEventListener("change", filterCards);
  if (classFilter) classFilter.addEventListener("change", filterCards);
  cards.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (!button) return;
    enlarge(visibleCards().indexOf(button.closest(".card")));
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
    const card = visibleCards()[current];
    if (card) card.querySelector(".open").focus();
  });
}
