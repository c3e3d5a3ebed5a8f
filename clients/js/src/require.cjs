// What `require("keras-encryip-client")` gives: the same module as `import`, where node can.
try {
  module.exports = require("./index.js");
} catch (error) {
  if (error.code !== "ERR_REQUIRE_ESM") throw error;
  throw new Error(
    "keras-encryip-client is an ES module, which this version of node does not `require`: write " +
      '`await import("keras-encryip-client")`, or use node 20.19, 22.12 or newer.',
  );
}
