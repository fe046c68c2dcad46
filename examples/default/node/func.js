// Format `default`: one process per call.
// STDIN is the request's body and then its end, STDOUT the answer's body, STDERR the log.
// Method, URL and headers are in the environment: FN_METHOD, FN_REQUEST_URL, FN_HEADER_CONTENT_TYPE ...
// Exit status 0 is success; any other, as after an exception, is FUNCTION_FAILED.
'use strict';

const fs = require('node:fs');

const name = fs.readFileSync(0, 'utf8').trim() || 'world';
console.error(`greeting ${name.slice(0, 80)}`);
console.log(`Hello, ${name}, from Node ${process.version}!`);
