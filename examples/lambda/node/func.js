// A handler as AWS Lambda has them. bootstrap.js runs it here; AWS's own `aws-lambda-ric` runs it as well.
'use strict';

exports.handler = async (event, context) => {
  const name = (event && typeof event === 'object' ? event.name : event) || 'world';
  if (name === 'nobody') throw new RangeError('nobody is there');
  console.log(`${context.awsRequestId} has ${context.getRemainingTimeInMillis()} ms left`);
  return { message: `Hello, ${name}, from ${process.env.AWS_LAMBDA_FUNCTION_NAME}!` };
};
