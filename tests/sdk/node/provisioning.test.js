'use strict';
// The provisioning service: its own SDK enrolls, the device SDK registers, and what comes of it connects to the hub.

const assert = require('node:assert/strict');
const { createHmac, randomUUID } = require('node:crypto');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Http } = require('azure-iot-provisioning-device-http');
const { Mqtt, MqttWs } = require('azure-iot-provisioning-device-mqtt');
const { ProvisioningServiceClient } = require('azure-iot-provisioning-service');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');
const { certificate } = require('./certificates');
const { client, faults, registry, serviceTwin, test } = require('./hub');

const service = ProvisioningServiceClient.fromConnectionString(process.env.DPS_SERVICE);
const ID_SCOPE = process.env.DPS_ID_SCOPE;

const newId = () => `node-${randomUUID()}`;

/** An enrollment that ends with the test, with the device of the same name. */
async function enroll(t, attestation, members = {}, registrationId = newId()) {
  const enrollment = { registrationId, attestation, ...members };
  const { responseBody } = await service.createOrUpdateIndividualEnrollment(enrollment);
  t.after(async () => {
    await service.deleteIndividualEnrollment(registrationId).catch(() => { /* the test did it */ });
    await registry.delete(registrationId).catch(() => { /* it never registered */ });
  });
  return { registrationId, enrollment: responseBody, key: responseBody.attestation.symmetricKey?.primaryKey };
}

async function enrollGroup(t, attestation) {
  const [enrollmentGroupId, registrationId] = [newId(), newId()];
  const { responseBody } = await service.createOrUpdateEnrollmentGroup({ enrollmentGroupId, attestation });
  t.after(async () => {
    await service.deleteEnrollmentGroup(enrollmentGroupId);
    await registry.delete(registrationId).catch(() => { /* it never registered */ });
  });
  return { enrollmentGroupId, registrationId, key: responseBody.attestation.symmetricKey?.primaryKey };
}

function register(security, Transport = Mqtt) {
  return ProvisioningDeviceClient.create('localhost', ID_SCOPE, new Transport(), security).register();
}

function withKey({ registrationId, key }) {
  return new SymmetricKeySecurityClient(registrationId, key);
}

/** The twin, as the device reads it once it is connected. */
async function connects(t, { deviceId, assignedHub }, secret, x509) {
  assert.equal(assignedHub, 'localhost');
  const opened = client({ id: deviceId, clients: [] }, undefined, secret);
  t.after(() => opened.close());
  if (x509) await opened.setOptions(x509);
  await opened.open();
  return opened.getTwin();
}

for (const [name, Transport] of Object.entries({ Mqtt, MqttWs, Http })) {
  test(`a device registers with its key over ${name}`, async (t) => {
    await faults(t, { retryAfterSecs: 1 });
    const initialTwin = { tags: { site: 'north' }, properties: { desired: { a: 1 } } };
    const it = await enroll(t, { type: 'symmetricKey' }, { initialTwin });
    const state = await register(withKey(it), Transport);
    assert.deepEqual([state.status, state.deviceId, state.substatus], ['assigned', it.registrationId, 'initialAssignment']);
    const twin = await connects(t, state, `SharedAccessKey=${it.key}`);
    assert.equal(twin.properties.desired.a, 1);
    assert.deepEqual((await serviceTwin({ id: it.registrationId })).tags, { site: 'north' });
    const { responseBody: registered } = await service.getDeviceRegistrationState(it.registrationId);
    assert.deepEqual([registered.status, registered.deviceId], ['assigned', it.registrationId]);
  });

  test(`a device registers with its certificate over ${name}`, async (t) => {
    await faults(t, { retryAfterSecs: 1 });
    const id = newId();
    const own = certificate(t, id);
    await enroll(t, { type: 'x509', x509: { clientCertificates: { primary: { certificate: own.cert } } } }, {}, id);
    const state = await register(new X509Security(id, own), Transport);
    const twin = await connects(t, state, 'x509=true', own);
    assert.equal(twin.properties.desired.$version, 1);
  });
}

test('a device registers with a key of its group', async (t) => {
  await faults(t, { retryAfterSecs: 1 });
  const it = await enrollGroup(t, { type: 'symmetricKey' });
  const key = createHmac('sha256', Buffer.from(it.key, 'base64')).update(it.registrationId).digest('base64');
  const state = await register(withKey({ ...it, key }));
  await connects(t, state, `SharedAccessKey=${key}`);
  const { responseBody: registered } = await service
    .createEnrollmentGroupDeviceRegistrationStateQuery({ query: '*' }, it.enrollmentGroupId).next();
  assert.deepEqual(registered.map(({ registrationId }) => registrationId), [it.registrationId]);
});

test("a device registers with a certificate of its group's authority, and no other", async (t) => {
  await faults(t, { retryAfterSecs: 1 });
  const [authority, stranger] = ['one', 'another'].map((name) => certificate(t, name, { authority: true }));
  const it = await enrollGroup(t, { type: 'x509', x509: { signingCertificates: { primary: { certificate: authority.cert } } } });
  const other = certificate(t, it.registrationId, { issuer: stranger });
  await assert.rejects(register(new X509Security(it.registrationId, other)), { name: 'UnauthorizedError' });
  const own = certificate(t, it.registrationId, { issuer: authority });
  await connects(t, await register(new X509Security(it.registrationId, own)), 'x509=true', own);
});

test('nobody registers with a wrong key, without an enrollment, or where it is disabled', async (t) => {
  await faults(t, { retryAfterSecs: 1 });
  const it = await enroll(t, { type: 'symmetricKey' }, { provisioningStatus: 'disabled' });
  const wrong = Buffer.alloc(32).toString('base64');
  await assert.rejects(register(withKey({ ...it, key: wrong })), { name: 'UnauthorizedError' });
  await assert.rejects(register(withKey({ registrationId: 'nobody', key: wrong })), { name: 'UnauthorizedError' });
  await assert.rejects(register(withKey(it)), /disabled/i);
});

test('a device waits while it is assigned and the service is busy', async (t) => {
  await faults(t, { busyPolls: 1, failNextRegistration: 429, retryAfterSecs: 1 });
  const it = await enroll(t, { type: 'symmetricKey' });
  assert.equal((await register(withKey(it))).status, 'assigned');
});

test('an enrollment is changed under its etag', async (t) => {
  const it = await enroll(t, { type: 'symmetricKey' });
  const changed = { ...it.enrollment, provisioningStatus: 'disabled' };
  const { responseBody: updated } = await service.createOrUpdateIndividualEnrollment(changed);
  assert.equal(updated.provisioningStatus, 'disabled');
  await assert.rejects(service.createOrUpdateIndividualEnrollment(changed), (error) => error.response.statusCode === 412);
  const { responseBody: known } = await service.getIndividualEnrollment(it.registrationId);
  assert.equal(known.etag, updated.etag);
  const { responseBody: mechanism } = await service.getIndividualEnrollmentAttestationMechanism(it.registrationId);
  assert.equal(mechanism.symmetricKey.primaryKey, it.key);
  const { responseBody: all } = await service.createIndividualEnrollmentQuery({ query: '*' }, 100).next();
  assert.ok(all.some(({ registrationId }) => registrationId === it.registrationId));
  await service.deleteIndividualEnrollment(it.registrationId);
  await assert.rejects(service.getIndividualEnrollment(it.registrationId), (error) => error.response.statusCode === 404);
});
