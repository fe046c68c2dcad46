// Reads a JSON list of queries from STDIN and writes for each whether it is of the grammar that Grafana's editor has.
import { createRequire } from "node:module";
import { join } from "node:path";

const kit = createRequire(join(process.argv[2], "package.json"));
const { parser } = kit(process.argv[2]);
let text = "";
for await (const chunk of process.stdin) text += chunk;
const right = JSON.parse(text).map((query) => {
  let wrong = false;
  parser.parse(query).iterate({ enter: (node) => void (wrong ||= node.type.isError) });
  return !wrong;
});
process.stdout.write(JSON.stringify(right));
