// Makes cards of what scripts/cards.py yields. Gradio calls this with `element`, `props` and `watch`. Text goes in as textContent only.
element.innerHTML = `<p class="say" role="status"></p>
<ol class="deck" aria-label="Study cards"></ol>
<div class="foot" hidden>
<p class="hint">Space or Enter turns a card, the arrow keys go from card to card.</p>
<button type="button" data-kind="csv">Save as CSV</button> <button type="button" data-kind="anki">Save for Anki</button>
</div>`;
const [say, list, foot] = [".say", ".deck", ".foot"].map((name) => element.querySelector(name));
const cards = () => [...list.querySelectorAll("button")];
let current = 0; // the one card that Tab reaches; the arrow keys move it

function span(parent, name) {
  return parent.appendChild(Object.assign(document.createElement("span"), { className: name }));
}

function turn(card, over) {
  card.classList.toggle("over", over);
  card.firstChild.ariaHidden = over;
  card.lastChild.ariaHidden = !over;
}

function add(number) {
  const card = list.appendChild(document.createElement("li")).appendChild(document.createElement("button"));
  card.type = "button";
  card.ariaLive = "polite"; // a side that turns up is read out
  for (const side of ["Question", "Answer"]) {
    const face = span(card, side.toLowerCase());
    span(face, "side").textContent = `${side} ${number}`;
    span(face, "text");
  }
  turn(card, false);
}

function reach(index) {
  current = Math.max(0, Math.min(index, cards().length - 1));
  cards().forEach((card, i) => (card.tabIndex = i === current ? 0 : -1));
}

function draw() {
  const deck = props.value, writing = deck.state === "writing", ended = !writing && element.dataset.state === "writing";
  if (cards().some((card, i) => card.querySelector(".text").textContent !== deck.cards[i]?.[0])) list.replaceChildren(); // another deck
  deck.cards.forEach((card, i) => {
    if (!cards()[i]) add(i + 1);
    cards()[i].querySelectorAll(".text").forEach((text, side) => {
      if (text.textContent !== card[side]) text.textContent = card[side];
    });
  });
  reach(current);
  say.textContent = deck.say;
  element.dataset.state = deck.state;
  list.ariaBusy = writing;
  foot.hidden = !deck.cards.length;
  // With nothing left to stop, the Stop button is switched off, and the focus would be lost.
  const stop = document.querySelector("#stop");
  if (ended && document.activeElement === stop) (cards()[current] || stop.previousElementSibling).focus();
}

list.addEventListener("click", (event) => {
  const card = event.target.closest("button");
  if (card) turn(card, !card.classList.contains("over"));
});

list.addEventListener("focusin", (event) => reach(cards().indexOf(event.target)));

list.addEventListener("keydown", (event) => {
  const all = cards(), columns = all.filter((card) => card.parentNode.offsetTop === all[0].parentNode.offsetTop).length;
  const to = { ArrowRight: current + 1, ArrowLeft: current - 1, ArrowDown: current + columns, ArrowUp: current - columns, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault(); // the page is not to scroll
  all[to]?.focus();
});

foot.addEventListener("click", (event) => {
  const kind = event.target.dataset.kind;
  if (!kind) return;
  const link = document.createElement("a"), deck = props.value;
  link.href = URL.createObjectURL(new Blob([deck[kind]], { type: "text/plain;charset=utf-8" }));
  link.download = deck.name + { csv: ".csv", anki: "-anki.txt" }[kind];
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});

watch("value", draw);
draw();
