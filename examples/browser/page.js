/** Opens a protected model with a key bundle, and shows the class names of its answers. */

import {
  Decoder,
  KeyBundle,
  parseResponse,
  X25519PrivateKey,
} from "../../clients/js/dist/index.js";

const MAX_ROWS = 500;
const $ = (id) => document.getElementById(id);

/** The opened model; held here alone, and gone when the page is closed. */
let decoder;

/** Run what a form does; show what went wrong. */
function on(id, action) {
  $(id).addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = event.submitter ?? $(id).querySelector("button");
    button.disabled = true;
    $("problem").hidden = true;
    try {
      await action();
    } catch (error) {
      $("answers").hidden = true;
      $("problem").textContent = error.message;
      $("problem").hidden = false;
      $("problem").scrollIntoView({ block: "nearest" });
    } finally {
      button.disabled = false;
    }
  });
}

/** Whether answers can be read. */
function enable(opened) {
  for (const fieldset of document.querySelectorAll("fieldset")) fieldset.disabled = !opened;
}

async function bytes(id) {
  return new Uint8Array(await $(id).files[0].arrayBuffer());
}

/** Ask for what opens this bundle: a passphrase, or the private key of its recipient. */
function askFor(bundle) {
  const own = bundle?.recipient !== undefined;
  $("own").hidden = !own;
  $("private-key").required = own;
  $("passphrase").required = !own; // a private key need not be encrypted
  $("of-what").textContent = own ? "Its passphrase" : "Passphrase";
}

$("bundle").addEventListener("change", async () => {
  askFor(
    await bytes("bundle")
      .then(KeyBundle.parse)
      .catch(() => undefined),
  ); // said on opening
});

on("open", async () => {
  const passphrase = $("passphrase").value;
  const progress = $("progress");
  $("passphrase").value = "";
  $("opened").textContent = "";
  decoder = undefined;
  enable(false);
  progress.hidden = false;
  try {
    const onProgress = (done) => (progress.value = done);
    const bundle = await KeyBundle.parse(await bytes("bundle"));
    let secret = passphrase;
    askFor(bundle);
    if (bundle.recipient !== undefined) {
      if ($("private-key").files.length === 0) {
        throw new Error(
          "The key bundle was made to your public key: choose your private key, too.",
        );
      }
      const pem = await bytes("private-key");
      secret = await X25519PrivateKey.parse(pem, passphrase || undefined, { onProgress });
    }
    decoder = await Decoder.open(await bytes("codebook"), bundle, secret, { onProgress });
    $("opened").textContent = `Model ${decoder.model}, ${decoder.classNames.length} classes`;
    enable(true);
  } finally {
    progress.hidden = true;
  }
});

on("ask", async () => {
  let answer;
  try {
    answer = await fetch($("address").value, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: $("request").value,
    });
  } catch {
    throw new Error(
      "The model server cannot be reached. If it is on another origin, it must be named in the " +
        "page's Content-Security-Policy, and allow this origin (CORS).",
    );
  }
  show(parseResponse(await answer.text()));
});

on("paste", () => show(parseResponse($("response").value)));

$("response").addEventListener("dragover", (event) => event.preventDefault());
$("response").addEventListener("drop", async (event) => {
  const [file] = event.dataTransfer.files;
  if (!file) return; // dropped text goes where it always goes
  event.preventDefault();
  $("response").value = await file.text();
});

/** Fill the table with an answer's classes. */
function show(answer) {
  const percent = (probability) => `${(100 * probability).toFixed(1)} %`;
  const best = Math.min(3, decoder.classNames.length);
  const rows =
    answer.kind === "ciphertexts"
      ? decoder.decrypt(answer.ciphertexts).map((label) => [decoder.classNames[label], "", ""])
      : decoder
          .topK(answer.rows, best)
          .map(([first, ...others]) => [
            first.name,
            percent(first.probability),
            others.map((guess) => `${guess.name} ${percent(guess.probability)}`).join(", "),
          ]);
  const shown = rows.slice(0, MAX_ROWS).map((cells, number) => {
    const row = document.createElement("tr");
    for (const text of [number + 1, ...cells]) row.insertCell().textContent = text;
    return row;
  });
  const part = rows.length > MAX_ROWS ? `, the first ${MAX_ROWS} of ${rows.length}` : "";
  $("answers").querySelector("caption").textContent = `Answers of ${decoder.model}${part}`;
  $("answers")
    .querySelector("tbody")
    .replaceChildren(...shown);
  $("answers").hidden = false;
  $("answers").scrollIntoView({ block: "nearest" });
}
