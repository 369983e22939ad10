// A page with one progress bar, as far as celery-progress's own client needs one:
// runs the script that the server serves, and writes down what a user would see.
const [script, progress] = process.argv.slice(2);

const changes = (name) =>
  new Proxy({}, {
    set(values, key, value) {
      values[key] = value;
      console.log(JSON.stringify([name, key, value]));
      return true;
    },
  });

function element(id) {
  const made = changes(id);
  Object.defineProperty(made, "style", { value: changes(id) });
  return made;
}

const page = {
  "progress-bar": element("bar"),
  "progress-bar-message": element("message"),
};
globalThis.document = { getElementById: (id) => page[id] ?? null };

const code = await (await fetch(script)).text();
const CeleryProgressBar = new Function(`${code}; return CeleryProgressBar`)();
CeleryProgressBar.initProgressBar(progress, { pollInterval: 50 });
