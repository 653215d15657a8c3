// Serves each listener that SERVER_STARTER_PORT names. Each answer names the generation that serves.

'use strict';

const http = require('http');

const generation = process.env.SERVER_STARTER_GENERATION;
const fds = process.env.SERVER_STARTER_PORT.split(';').map((one) => Number(one.split('=').pop()));

const servers = fds.map((fd) =>
  http.createServer((request, response) => response.end(`generation ${generation}\n`)).listen({ fd }));

// No new connection from here on; the process ends with the last one that is open.
process.on('SIGTERM', () => servers.forEach((server) => server.close()));
