// Format `http`: HTTP/1.1 requests on STDIN, an HTTP/1.1 answer to each on STDOUT; hot.
// It is the client's HTTP itself: method, path and query, headers; besides them Fn-Call-Id and Fn-Deadline.
// Status (200 to 599) and headers of the answer are what the client sees. A 500 is an answer, not a failure of the call.
// Read the request to its end before you end the answer: the next request follows at once. STDIN ends when no call will come.
// STDOUT carries answers and nothing else: log with console.error.
'use strict';

const http = require('node:http');
const { Duplex } = require('node:stream');

const server = http.createServer(async (request, response) => {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  const url = new URL(request.url, 'http://localhost');
  const name = url.searchParams.get('name') || Buffer.concat(pieces).toString().trim() || 'world';
  console.error(`greeting ${name.slice(0, 80)}`);
  const answer = `Hello, ${name}, from Node over HTTP!\n`;
  response.writeHead(200, { 'Content-Type': 'text/plain; charset=utf-8', 'Content-Length': Buffer.byteLength(answer) });
  response.end(answer);
});
server.keepAliveTimeout = 0; // Stoker decides how long a container is kept ...
server.requestTimeout = 0; // ... and how long a call may take

// Node's server takes any stream for a connection; this one is the only one.
server.emit('connection', Duplex.from({ readable: process.stdin, writable: process.stdout }));
