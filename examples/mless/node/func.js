// A handler as AWS Lambda has them; mless_runtime.js runs it, and says what the contract is.
'use strict';

exports.handler = async (event, context) => {
  const name = (event && typeof event === 'object' ? event.name : event) || 'world';
  if (name === 'nobody') throw new RangeError('nobody is there');
  console.log(`${context.awsRequestId} has ${context.getRemainingTimeInMillis()} ms left`);
  return { message: `Hello, ${name}, from ${context.functionName}!` };
};
