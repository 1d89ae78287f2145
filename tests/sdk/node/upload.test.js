'use strict';
// The device SDK against the hub: files that a device uploads, in the SDK's own way and step by step.

const assert = require('node:assert/strict');
const { Readable } = require('node:stream');
const { connect, device, rest, test } = require('./hub');

test('a file goes up by way of the storage library', async (t) => {
  const it = await device(t);
  // Larger than one block of the library.
  const body = 'what happened\n'.repeat(700_000);
  await (await connect(it)).uploadToBlob('logs/today.txt', Readable.from([Buffer.from(body)]), body.length);
  const [upload] = await rest('GET', `/emulator/uploads/${it.id}`);
  assert.equal(upload.name, 'logs/today.txt');
  const arrived = await rest('GET', upload.path);
  assert.ok((await arrived.text()) === body, 'the file arrives as it was sent');
  assert.equal(upload.notification.isSuccess, true);
});

test('an upload that failed is told of', async (t) => {
  const it = await device(t);
  const uploader = await connect(it);
  const { correlationId, blobName } = await uploader.getBlobSharedAccessSignature('a.txt');
  assert.equal(blobName, `${it.id}/a.txt`);
  await uploader.notifyBlobUploadStatus(correlationId, false, 500, 'the disk is gone');
  const [upload] = await rest('GET', `/emulator/uploads/${it.id}`);
  assert.equal(upload.sizeBytes, null);
  assert.deepEqual(upload.notification, { isSuccess: false, statusCode: 500, statusDescription: 'the disk is gone' });
  await assert.rejects(uploader.notifyBlobUploadStatus(correlationId, true, 200, 'again'));
});
