// A hot function: an HTTP server on the Unix socket that FN_LISTENER names, with nothing but Node's standard library.
//
// Stoker sends each call as `POST /call`. The answer's status is 200 whenever the function itself worked.
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const server = http.createServer((request, response) => {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', () => {
    const name = Buffer.concat(pieces).toString().trim() || 'world';
    console.error(`greeting ${name.slice(0, 80)}`); // STDERR is the log
    const answer = `Hello, ${name}, from Node ${process.version}!\n`;
    response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': Buffer.byteLength(answer) });
    response.end(answer);
  });
});
server.keepAliveTimeout = 0; // Stoker decides how long a connection is kept

// Bind beside the name and then link to it: the socket appears only when it can be used.
const listener = process.env.FN_LISTENER.replace(/^unix:/, '');
const ready = path.join(path.dirname(listener), 'hello.sock');
server.listen(ready, () => {
  fs.chmodSync(ready, 0o666);
  fs.symlinkSync(path.basename(ready), listener);
});
