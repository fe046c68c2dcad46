// Format `http-stream`: an HTTP/1.1 server on the Unix socket that FN_LISTENER names; hot.
// The socket must stand within `init_timeout`. Bind it beside its name, then link to it: it appears only when it can be used.
// Each call is `POST /call` with the request's headers, Fn-Call-Id and Fn-Deadline. Both bodies may stream.
// Answer 200 if the function worked, 502 if it failed; any other status is no answer. An HTTP client sees Fn-Http-Status.
// STDOUT and STDERR are the log.
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const server = http.createServer((request, response) => {
  response.writeHead(200, { 'Content-Type': request.headers['content-type'] ?? 'application/octet-stream' });
  request.pipe(response);
});
server.keepAliveTimeout = 0; // Stoker decides how long a connection is kept ...
server.requestTimeout = 0; // ... and how long a call may take

const listener = process.env.FN_LISTENER.replace(/^unix:/, '');
const ready = path.join(path.dirname(listener), 'echo.sock');
server.listen(ready, () => {
  fs.chmodSync(ready, 0o666);
  fs.symlinkSync(path.basename(ready), listener);
});
