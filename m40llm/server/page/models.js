// Which models the server offers, and which one the person chose.

import { listModels } from "./api.js";
import * as store from "./store.js";
import { find, showError } from "./view.js";

const select = () => find("#model");

/** Fills the choice of models; throws a ChatError. */
async function load() {
  const ids = await listModels(store.loadKey());
  select().replaceChildren(...ids.map((id) => new Option(id, id)));
  const wanted = store.load("model", "");
  if (ids.includes(wanted)) select().value = wanted;
  select().hidden = !ids.length;
}

/** The same, with an error shown above the message box. */
export async function refreshModels() {
  const error = await load().catch((failure) => failure);
  showError(find("#notice"), error);
}

/** The model to ask: a request must name one, also where the page came before the server. */
export async function chosenModel() {
  if (!select().value) await load();
  return select().value;
}

export function initModels() {
  select().addEventListener("change", () => store.save("model", select().value));
}
