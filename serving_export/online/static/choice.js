// A text field with a list of what may be meant: the combobox of the ARIA practices.
// Arrows walk through the list, Enter takes, Escape closes and then empties.

import { element } from "./elements.js";

const WAIT = 120; // ms after a key, so that a word is one question

export function makeChoice(field, list, { find, show, take, takeText }) {
  let found = [];
  let foundFor = null; // the words that `found` answers
  let active = -1;
  let timer;
  let asking = new AbortController();

  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, WAIT);
  });
  field.addEventListener("focus", () => {
    field.select();
    look();
  });
  field.addEventListener("click", () => list.hidden && look());
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    const act = { ArrowDown: () => walk(1), ArrowUp: () => walk(-1), Enter: enter, Escape: escape }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  list.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps the focus
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) choose([...list.children].indexOf(option));
  });

  async function look() {
    clearTimeout(timer);
    asking.abort();
    asking = new AbortController();
    const { signal } = asking;
    const words = field.value.trim();
    const answer = await find(words, signal).catch(() => []); // without a list the field itself still works
    if (signal.aborted || document.activeElement !== field) return;
    [found, foundFor] = [answer, words];
    active = -1;
    const options = found.map((each, place) =>
      element("li", { role: "option", id: `${list.id}-${place}`, "aria-selected": "false" }, ...show(each)),
    );
    list.replaceChildren(...options);
    list.hidden = !found.length;
    field.setAttribute("aria-expanded", String(!list.hidden));
    field.removeAttribute("aria-activedescendant");
  }

  // No key acts on what was found for half a word.
  const isOld = () => list.hidden || foundFor !== field.value.trim();

  async function walk(step) {
    if (isOld()) await look();
    if (list.hidden) return;
    list.children[active]?.setAttribute("aria-selected", "false");
    active = (active + step + (active < 0 && step < 0 ? 1 : 0) + found.length) % found.length;
    const option = list.children[active];
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    field.setAttribute("aria-activedescendant", option.id);
  }

  async function enter() {
    if (active >= 0 && !isOld()) return choose(active);
    if (takeText) {
      close();
      return takeText(field.value.trim());
    }
    await look();
    if (!list.hidden) choose(0);
  }

  function escape() {
    if (list.hidden) field.value = "";
    close();
  }

  function choose(place) {
    const chosen = found[place];
    close();
    take(chosen);
  }

  function close() {
    clearTimeout(timer);
    asking.abort();
    active = -1;
    list.hidden = true;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  }
}
