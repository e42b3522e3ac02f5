// Makes the gRPC calls that it reads, one JSON object a line, and prints what it saw of each.
//
//     node client.js ADDRESS [CA [CERTIFICATE KEY]]
"use strict";

const { readFileSync } = require("node:fs");
const { createInterface } = require("node:readline");
const grpc = require("@grpc/grpc-js");

const [address, ca, certificate, key] = process.argv.slice(2);
const read = (path) => (path ? readFileSync(path) : null);
const credentials = ca
  ? grpc.credentials.createSsl(read(ca), read(key), read(certificate))
  : grpc.credentials.createInsecure();
const options = {
  "grpc.max_receive_message_length": -1,
  "grpc.use_local_subchannel_pool": 1,
};
const client = new grpc.Client(address, credentials, options);
const zipping = new grpc.Client(address, credentials, {
  ...options,
  "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip,
});
const same = (bytes) => bytes;

function metadataOf(pairs) {
  const metadata = new grpc.Metadata();
  for (const [name, value] of pairs) {
    metadata.add(name, name.endsWith("-bin") ? Buffer.from(value, "hex") : value);
  }
  return metadata;
}

// The metadata with all values in hexadecimal.
function listed(metadata) {
  const all = {};
  for (const name of Object.keys(metadata ? metadata.getMap() : {})) {
    all[name] = metadata.get(name).map((value) => Buffer.from(value).toString("hex"));
  }
  return all;
}

const calls = new Map();

function start(asked) {
  const found = { ID: asked.ID, Initial: {}, Payload: "" };
  const settings = asked.Seconds ? { deadline: Date.now() + asked.Seconds * 1000 } : {};
  const call = (asked.Gzip ? zipping : client).makeUnaryRequest(
    asked.Path, same, same, Buffer.from(asked.Payload, "hex"), metadataOf(asked.Metadata), settings,
    (error, answer) => {
      if (answer) found.Payload = answer.toString("hex");
    },
  );
  calls.set(asked.ID, call);
  call.on("metadata", (metadata) => { found.Initial = listed(metadata); });
  call.on("status", (status) => {
    found.Code = grpc.status[status.code];
    found.Message = status.details;
    found.Trailing = listed(status.metadata);
    found.Details = (found.Trailing["grpc-status-details-bin"] || [""])[0];
    // After the callback of the answer, which may come on the same turn.
    setImmediate(() => process.stdout.write(JSON.stringify(found) + "\n"));
  });
}

createInterface({ input: process.stdin }).on("line", (line) => {
  const asked = JSON.parse(line);
  if (asked.Cancel) calls.get(asked.ID).cancel();
  else start(asked);
}).on("close", () => {
  client.close();
  zipping.close();
});
