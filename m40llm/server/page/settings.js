// The dialog of the settings. Every change holds at once; what is not valid is not taken.

import * as store from "./store.js";
import { find } from "./view.js";

const FIELDS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop"];

export const settings = store.load("settings", {});
let keyBefore = "";

const field = (name) => find(`#settings-form [name=${name}]`);
const dialog = () => find("#settings");

/** `system` of the conversation that is open. `focus`: the name of the field to begin in. */
export function openSettings(system, focus = "system") {
  for (const name of FIELDS) field(name).value = settings[name] ?? "";
  field("system").value = system;
  field("key").value = store.loadKey();
  field("remember").checked = Boolean(store.load("key", ""));
  find(`#settings-form [name=theme][value=${store.load("theme", "auto")}]`).checked = true;
  find("#import-note").textContent = "";
  keyBefore = store.loadKey();
  dialog().showModal();
  field(focus).focus();
}

/** `onSystem(text)` and `onKey()` are told of changes; a key counts once the dialog closes. */
export function initSettings({ onSystem, onKey }) {
  find("#settings-form").addEventListener("input", ({ target }) => take(target, onSystem));
  find("#reset").addEventListener("click", () => {
    for (const name of FIELDS) {
      field(name).value = "";
      take(field(name));
    }
  });
  dialog().addEventListener("close", () => {
    store.saveKey(field("key").value.trim(), field("remember").checked);
    if (store.loadKey() !== keyBefore) onKey();
  });
  // A click beside the dialog closes it: its own box has no padding that could be hit.
  dialog().addEventListener("click", ({ target }) => target === dialog() && dialog().close());
}

function take(input, onSystem) {
  if (input.name === "system") {
    settings.system = input.value;
    onSystem(input.value);
  } else if (input.name === "theme") {
    setTheme(input.value);
  } else if (FIELDS.includes(input.name) && input.checkValidity()) {
    settings[input.name] = input.value;
  }
  store.save("settings", settings);
}

/** "auto", "light" or "dark". */
export function setTheme(theme) {
  store.save("theme", theme);
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
