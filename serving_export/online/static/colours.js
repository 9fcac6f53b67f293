// Light, dark, or as the system has it. Not a module, so that it runs before the first paint.

const CHOSEN = "nightjar-colours";

function wear(colours) {
  document.documentElement.dataset.colours = colours;
}

function chosenBefore() {
  try {
    return localStorage.getItem(CHOSEN) ?? "auto";
  } catch {
    return "auto"; // the browser keeps nothing for this page
  }
}

function keep(colours) {
  try {
    localStorage.setItem(CHOSEN, colours);
  } catch {
    // it holds until the page is left
  }
}

wear(chosenBefore());
document.addEventListener("DOMContentLoaded", () => {
  for (const radio of document.querySelectorAll("#colours input")) {
    radio.checked = radio.value === chosenBefore();
    radio.addEventListener("change", () => {
      wear(radio.value);
      keep(radio.value);
    });
  }
});
