"use strict";
// Layer switches, score slider and enlarged view. Without this script the page shows everything except
// masks and heatmaps.

const main = document.getElementById("main");
const cards = document.getElementById("cards");
const all = cards ? [...cards.children] : [];
const threshold = document.getElementById("threshold");
const strength = document.getElementById("strength");
const group = document.getElementById("group");
const ofClass = document.getElementById("class");
const viewer = document.getElementById("viewer");
let place = 0; // index of the enlarged card among the visible ones

function showLayers() {
  for (const box of document.querySelectorAll("[data-layer]")) {
    document.body.classList.toggle("show-" + box.dataset.layer, box.checked);
  }
}

function applyThreshold() {
  const least = Number(threshold.value);
  document.getElementById("threshold-said").value = least.toFixed(2);
  for (const one of document.querySelectorAll("[data-score]:not(.card)")) {
    one.classList.toggle("below", Number(one.dataset.score) < least);
  }
}

function order(key) {
  if (key === "low") return (card) => Number(card.dataset.score);
  if (key === "truth") return (card) => Number(card.dataset.agreement);
  return (card) => Number(card.dataset.number);
}

function choose() {
  const key = group ? group.value : "";
  const name = ofClass ? ofClass.value : "";
  const by = order(key);
  let count = 0;
  for (const card of [...all].sort((a, b) => by(a) - by(b))) {
    const inGroup = !key || card.dataset.groups.split(" ").includes(key);
    const inClass = !name || card.dataset.classes.split("\n").includes(name);
    card.hidden = !(inGroup && inClass);
    count += card.hidden ? 0 : 1;
    cards.append(card);
  }
  document.getElementById("shown").textContent = `${count} of ${all.length} images shown`;
}

function shown() {
  return [...cards.children].filter((card) => !card.hidden);
}

function see(index) {
  const some = shown();
  place = (index + some.length) % some.length;
  const copy = some[place].cloneNode(true);
  const stage = copy.querySelector(".stage");
  copy.querySelector(".open").replaceWith(stage);
  document.getElementById("viewer-body").replaceChildren(copy);
  document.getElementById("viewer-place").textContent = `${place + 1} of ${some.length}`;
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
  if (group) group.addEventListener("change", choose);
  if (ofClass) ofClass.addEventListener("change", choose);
  cards.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (!button) return;
    see(shown().indexOf(button.closest(".card")));
    viewer.showModal();
  });
  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("[data-go]");
    if (event.target === viewer || (button && button.dataset.go === "0")) viewer.close();
    else if (button) see(place + Number(button.dataset.go));
  });
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) see(place + step);
  });
  viewer.addEventListener("close", () => {
    const card = shown()[place];
    if (card) card.querySelector(".open").focus();
  });
}
