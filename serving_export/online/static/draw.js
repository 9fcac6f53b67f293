// What the page shows, drawn from the endpoint's answers.

import { bar, category, element, nameOf, number, percent, signed, text } from "./elements.js";

const CLASSES_SHOWN = 5;
const EARLIER_SHOWN = 3;
const EVENTS_SHOWN = 12; // of a long session, beside each item
const isStill = matchMedia("(prefers-reduced-motion: reduce)");

export function drawHistory(list, events, add) {
  list.replaceChildren(
    ...events.map((event) => {
      const button = element("button", { type: "button", "aria-label": `Add ${nameOf(event)} to the session` });
      button.append(nameOf(event));
      button.addEventListener("click", () => add(event));
      const when = event.occurred_at && element("time", { datetime: event.occurred_at }, moment(event.occurred_at));
      const told = element("span", { class: "quiet" }, when, event.event_type && ` · ${event.event_type}`);
      return element("li", {}, button, category(event.category), told);
    }),
  );
}

const DAY = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", timeZone: "UTC",
});
const moment = (iso) => DAY.format(new Date(iso));

export function drawEvents(list, session) {
  list.replaceChildren(
    ...session.map((item, place) => {
      const label = `Remove ${nameOf(item)} from the session`;
      const button = element("button", { type: "button", class: "remove", "aria-label": label, "data-place": place }, "×");
      return element("li", {}, text("rank", place + 1), text("name", nameOf(item)), category(item.category),
        element("span", { class: "influence" }), button);
    }),
  );
  list.scrollTop = list.scrollHeight; // the newest is what was added, or what stands where something was taken out
}

// Beside each event of the session, what it adds to the score of one item.
export function markInfluence(list, reasons) {
  const most = Math.max(...reasons.map(({ influence }) => Math.abs(influence)), Number.MIN_VALUE);
  const of = new Map(reasons.map(({ event, influence }) => [event, influence]));
  [...list.children].forEach((row, place) => {
    const influence = of.get(place);
    const shown = influence === undefined ? [] : [bar(influence / most, "middle"), text("number", signed(influence))];
    row.querySelector(".influence").replaceChildren(...shown);
  });
}

// The same of what the user did before the session, in words: those that weigh most.
export function tellBefore(reasons, past) {
  const names = new Map(past.map((item) => [item.item_id, nameOf(item)]));
  const most = reasons.toSorted((one, other) => Math.abs(other.influence) - Math.abs(one.influence));
  const told = most.slice(0, EARLIER_SHOWN).map(({ item_id, influence }) => `${names.get(item_id) ?? item_id} ${signed(influence)}`);
  return told.length ? `Before this session: ${told.join(" · ")}` : "";
}

// The list, each row moving from where it was; the place that had the focus keeps it.
export function drawList(list, items, { session, add }) {
  const before = new Map([...list.children].map((row, place) => [row.dataset.item, { top: row.offsetTop, place }]));
  const focused = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  const rows = items.map((item, place) => row(item, place, before, { session, add }));
  list.replaceChildren(...rows);
  if (focused >= 0) rows[Math.min(focused, rows.length - 1)]?.querySelector("button").focus({ preventScroll: true });
  if (!isStill.matches) rows.forEach((each) => move(each, before.get(each.dataset.item)?.top));
}

function row(item, place, before, { session, add }) {
  const button = element("button", { type: "button", "aria-label": `Add ${nameOf(item)} to the session` }, nameOf(item));
  button.addEventListener("click", () => add({ item_id: item.item_id, title: item.title, category: item.category }));
  const was = before.get(item.item_id)?.place;
  return element(
    "li",
    { "data-item": item.item_id },
    text("rank", item.rank),
    element("span", { class: "what" }, button, category(item.category)),
    element("span", { class: "score" }, text("unseen", "score "), number(item.score)),
    element("span", { class: "why" }, text(`source ${item.source}`, item.source), moved(was, place, before.size),
      strip((item.reasons ?? []).filter((each) => each.of !== "history"), session.length), reason(item)),
  );
}

function moved(was, place, numBefore) {
  if (!numBefore || was === place) return null;
  if (was === undefined) return text("moved new", "new");
  return text("moved", was > place ? `▲ ${was - place}` : `▼ ${place - was}`);
}

// What speaks for an item; one that is listed in spite of all that was done says so.
function reason(item) {
  if (item.because) return text("reason", item.because.text);
  return item.reasons?.length ? text("reason", "nothing that was done speaks for it") : null;
}

// One small bar an event of the session, up for a reason and down for a reason against.
function strip(reasons, length) {
  if (length < 2 || !reasons.length) return null;
  const first = Math.max(0, length - EVENTS_SHOWN);
  const most = Math.max(...reasons.map(({ influence }) => Math.abs(influence)), Number.MIN_VALUE);
  const of = new Map(reasons.map(({ event, influence }) => [event, influence / most]));
  const bars = Array.from({ length: length - first }, (_, place) => bar(of.get(first + place) ?? 0, "upright"));
  return element("span", { class: "strip", "aria-hidden": "true" }, ...bars);
}

function move(row, top) {
  const way = top === undefined ? 0 : top - row.offsetTop;
  if (top !== undefined && !way) return;
  const from = top === undefined ? { opacity: 0 } : { transform: `translateY(${way}px)` };
  row.animate([from, { opacity: 1, transform: "none" }], { duration: 260, easing: "ease-out" });
}

// An item that only one of two lists has says so.
export function markPartners(sides) {
  const [first, second] = sides.map((side) => [...side.querySelectorAll("li")]);
  const ids = [first, second].map((rows) => new Set(rows.map((each) => each.dataset.item)));
  const isAlone = (each, others) => ids[0].size > 0 && ids[1].size > 0 && !others.has(each.dataset.item);
  first.forEach((each) => each.classList.toggle("alone", isAlone(each, ids[1])));
  second.forEach((each) => each.classList.toggle("alone", isAlone(each, ids[0])));
}

export function tellOverlap([first, second]) {
  if (!first || !second) return "";
  const ids = new Set(first.items.map(({ item_id }) => item_id));
  const both = second.items.filter(({ item_id }) => ids.has(item_id)).length;
  return `${both} of ${second.items.length} are in both lists; bold: in one only`;
}

export function drawIntents(box, intents) {
  box.replaceChildren(
    ...Object.entries(intents).map(([name, classes]) => {
      const rows = classes.slice(0, CLASSES_SHOWN).map(({ value, probability }) =>
        element("li", {}, text("name", value), bar(probability), text("number", percent(probability))),
      );
      return element("section", {}, element("h3", {}, name.replaceAll("_", " ")), element("ol", {}, ...rows));
    }),
  );
}
