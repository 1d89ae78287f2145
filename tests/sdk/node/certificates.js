'use strict';
// Certificates of devices, and of the authorities that issue them.

const { execFileSync } = require('node:child_process');
const { X509Certificate } = require('node:crypto');
const { mkdtempSync, readFileSync, rmSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');

/** A certificate and its key in PEM, signed by itself or by `issuer`. Its files go with the test. */
function certificate(t, commonName, { issuer, authority = false } = {}) {
  const directory = mkdtempSync(join(tmpdir(), 'sdk-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const files = { cert: join(directory, 'cert'), key: join(directory, 'key') };
  execFileSync('openssl', [
    'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2',
    '-subj', `/CN=${commonName}`, '-addext', `basicConstraints=critical,CA:${authority ? 'TRUE' : 'FALSE'}`,
    '-out', files.cert, '-keyout', files.key,
    ...(issuer ? ['-CA', issuer.files.cert, '-CAkey', issuer.files.key] : []),
  ], { stdio: 'ignore', timeout: 60_000 });
  const cert = readFileSync(files.cert, 'utf8');
  const thumbprint = new X509Certificate(cert).fingerprint256.replaceAll(':', '');
  return { cert, key: readFileSync(files.key, 'utf8'), thumbprint, files };
}

module.exports = { certificate };
