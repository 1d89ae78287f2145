'use strict';
// The service SDK against the hub: the registry, queries, configurations and jobs.

const assert = require('node:assert/strict');
const { randomUUID } = require('node:crypto');
const { JobClient, Registry } = require('azure-iothub');
const { SERVICE, call, connect, desire, device, faults, registry, serviceTwin, test, until } = require('./hub');

const jobs = JobClient.fromConnectionString(SERVICE);

/** What the SDK makes of a refusal: the name of its class, and the status. */
const refusal = (name, status) => (error) => {
  assert.deepEqual([error.name, error.response?.statusCode], [name, status]);
  return true;
};

/** The rows of all pages, and how many each page had. A promise's `next` starts over where it is given no token. */
async function allPages(query, next = () => query.next(query.continuationToken)) {
  const rows = [];
  const sizes = [];
  do {
    const { result } = await next();
    rows.push(...result);
    sizes.push(result.length);
  } while (query.hasMoreResults);
  return { rows, sizes };
}

test('a device from its beginning to its end', async (t) => {
  const it = await device(t);
  assert.equal(it.identity.status, 'enabled');
  assert.ok(it.key, 'the hub makes the keys that the SDK leaves empty');
  await assert.rejects(registry.create({ deviceId: it.id }), refusal('DeviceAlreadyExistsError', 409));

  const { responseBody: disabled } = await registry.update({ ...it.identity, status: 'disabled', statusReason: 'why not' });
  assert.deepEqual([disabled.status, disabled.statusReason], ['disabled', 'why not']);
  assert.equal(disabled.authentication.symmetricKey.primaryKey, it.key);
  const { responseBody: known } = await registry.get(it.id);
  assert.equal(known.etag, disabled.etag);
  const { responseBody: everybody } = await registry.list();
  assert.ok(everybody.some((one) => one.deviceId === it.id));

  await registry.delete(it.id);
  await assert.rejects(registry.get(it.id), refusal('DeviceNotFoundError', 404));
  await assert.rejects(registry.update({ deviceId: it.id }), refusal('DeviceNotFoundError', 404));
  await assert.rejects(registry.delete(it.id), refusal('DeviceNotFoundError', 404));
});

test('devices in bulk, and how many there are', async (t) => {
  const count = async () => (await registry.getRegistryStatistics()).responseBody.totalDeviceCount;
  const before = await count();
  const devices = [1, 2, 3].map((number) => ({ deviceId: `node-bulk-${number}-${randomUUID()}`, status: 'enabled' }));
  const { responseBody: added } = await registry.addDevices(devices);
  assert.deepEqual([added.isSuccessful, added.errors], [true, []]);
  assert.equal(await count(), before + 3);

  const again = registry.addDevices(devices.slice(0, 1));
  await assert.rejects(again, (error) => error.response.statusCode === 400 && /DeviceAlreadyExists/.test(error.message));

  const disabled = devices.map((one) => ({ ...one, status: 'disabled' }));
  assert.equal((await registry.updateDevices(disabled, true)).responseBody.isSuccessful, true);
  const { responseBody: current } = await registry.get(devices[2].deviceId);
  assert.equal(current.status, 'disabled');
  const underItsEtag = (etag) => registry.updateDevices([{ ...disabled[2], status: 'enabled', etag }], false);
  assert.equal((await underItsEtag(current.etag)).responseBody.isSuccessful, true);
  await assert.rejects(underItsEtag(current.etag), (error) => error.response.statusCode === 400);
  assert.equal((await registry.removeDevices(devices, true)).responseBody.isSuccessful, true);
  assert.equal(await count(), before);
});

test('modules', async (t) => {
  const it = await device(t);
  await registry.addModule({ deviceId: it.id, moduleId: 'sensor', managedBy: 'me' });
  const { responseBody: modules } = await registry.getModulesOnDevice(it.id);
  assert.deepEqual(modules.map(({ moduleId, managedBy }) => [moduleId, managedBy]), [['sensor', 'me']]);
  await registry.updateModuleTwin(it.id, 'sensor', { properties: { desired: { a: 1 } } }, '*');
  const { responseBody: twin } = await registry.getModuleTwin(it.id, 'sensor');
  assert.equal(twin.properties.desired.a, 1);
  await registry.removeModule(it.id, 'sensor');
  await assert.rejects(registry.getModule(it.id, 'sensor'), (error) => error.response.statusCode === 404);
});

test('a twin is patched under its etag', async (t) => {
  const it = await device(t);
  const twin = await serviceTwin(it);
  await twin.update({ tags: { ring: 'canary' } });
  assert.deepEqual(twin.tags, { ring: 'canary' });
  const stale = registry.updateTwin(it.id, { tags: { ring: 'stable' } }, 'AAAAAAAAAAA=');
  await assert.rejects(stale, refusal('InvalidEtagError', 412));
  await assert.rejects(desire(it, { 'a.b': 1 }), refusal('ArgumentError', 400));
  assert.deepEqual((await serviceTwin(it)).tags, { ring: 'canary' });
});

test('nobody gets in without the right key, and nobody too often', async (t) => {
  const wrong = SERVICE.replace(/SharedAccessKey=.*/, `SharedAccessKey=${Buffer.alloc(32).toString('base64')}`);
  await assert.rejects(Registry.fromConnectionString(wrong).list(), refusal('UnauthorizedError', 401));
  const it = await device(t);
  await faults(t, { throttle: 1 });
  await assert.rejects(registry.get(it.id), refusal('ThrottlingError', 429));
  await registry.get(it.id);
});

test('queries are paged', async (t) => {
  const ring = randomUUID();
  const ids = [];
  for (let number = 0; number < 5; number += 1) {
    const it = await device(t);
    await registry.updateTwin(it.id, { tags: { ring, floor: number % 2 } }, '*');
    ids.push(it.id);
  }
  const where = `WHERE tags.ring = '${ring}'`;
  const twins = registry.createQuery(`SELECT * FROM devices ${where}`, 2);
  const found = await allPages(twins, () => twins.nextAsTwin());
  assert.deepEqual(found.sizes, [2, 2, 1]);
  assert.deepEqual(found.rows.map((twin) => twin.deviceId).sort(), ids.sort());
  const counted = registry.createQuery(`SELECT tags.floor AS floor, COUNT() AS n FROM devices ${where} GROUP BY tags.floor`);
  const { rows } = await allPages(counted);
  assert.deepEqual(rows.sort((a, b) => a.floor - b.floor), [{ floor: 0, n: 3 }, { floor: 1, n: 2 }]);
  await assert.rejects(registry.createQuery('SELECT').next(), refusal('ArgumentError', 400));
});

test('a configuration from its beginning to its end', async (t) => {
  const it = await device(t);
  await registry.updateTwin(it.id, { tags: { devicetype: it.id } }, '*');
  const id = `firmware-${randomUUID()}`;
  const firmware = { fwVersion: '2.8.5', fwPackageURI: 'https://secureuri/package.bin', fwPackageCheckValue: '123456abcde' };
  const { responseBody: created } = await registry.addConfiguration({
    id,
    content: { deviceContent: { 'properties.desired.firmware': firmware } },
    targetCondition: `tags.devicetype = '${it.id}'`,
    priority: 20,
    metrics: { queries: { current: "SELECT deviceId FROM devices WHERE properties.reported.firmware.fwUpdateStatus = 'current'" } },
  });
  t.after(() => registry.removeConfiguration(id).catch(() => { /* the test did it */ }));
  await assert.rejects(registry.addConfiguration(created), (error) => error.response.statusCode === 409);
  await until(async () => (await serviceTwin(it)).properties.desired.firmware);
  const { responseBody: applied } = await registry.getConfiguration(id);
  assert.deepEqual(applied.systemMetrics.results, { targetedCount: 1, appliedCount: 1 });

  const { responseBody: updated } = await registry.updateConfiguration({ ...created, priority: 21 });
  assert.equal(updated.priority, 21);
  const stale = registry.updateConfiguration({ ...created, priority: 22 });
  await assert.rejects(stale, (error) => error.response.statusCode === 412);
  const { responseBody: all } = await registry.getConfigurations();
  assert.ok(all.some((one) => one.id === id));
  await registry.removeConfiguration(id);
  await assert.rejects(registry.getConfiguration(id), (error) => error.response.statusCode === 404);
});

async function ended(jobId) {
  return until(async () => {
    const { jobStatus: job } = await jobs.getJob(jobId);
    return ['completed', 'failed', 'cancelled'].includes(job.status) && job;
  });
}

test('jobs call methods and update twins', async (t) => {
  const it = await device(t);
  const opened = await connect(it);
  opened.onDeviceMethod('fw', (request, response) => response.send(201, request.payload));
  await call(it, 'fw', null, { connectTimeoutInSeconds: 20, responseTimeoutInSeconds: 20 });
  const condition = `deviceId IN ['${it.id}']`;
  const called = `called-${randomUUID()}`;
  const method = { methodName: 'fw', payload: { a: 1 }, responseTimeoutInSeconds: 10 };
  await jobs.scheduleDeviceMethod(called, condition, method, new Date(), 60);
  assert.equal((await ended(called)).status, 'completed');
  const query = registry.createQuery(`SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '${called}'`);
  const { rows: [row] } = await allPages(query);
  assert.deepEqual(row.outcome.deviceMethodResponse, { status: 201, payload: { a: 1 } });

  const updated = `updated-${randomUUID()}`;
  await jobs.scheduleTwinUpdate(updated, condition, { etag: '*', properties: { desired: { b: 2 } } }, new Date(), 60);
  assert.equal((await ended(updated)).status, 'completed');
  assert.equal((await serviceTwin(it)).properties.desired.b, 2);

  const again = `again-${randomUUID()}`;
  await jobs.scheduleTwinUpdate(again, condition, { etag: '*', properties: { desired: { b: 3 } } }, new Date(), 60);
  await ended(again);
  const { rows, sizes } = await allPages(jobs.createQuery('scheduleUpdateTwin', 'completed', 1));
  const ids = rows.map((job) => job.jobId);
  assert.ok(ids.includes(updated) && ids.includes(again) && sizes.every((size) => size === 1));
});

test('a job that has not begun can be cancelled', async () => {
  const jobId = `tomorrow-${randomUUID()}`;
  const patch = { etag: '*', properties: { desired: { a: 1 } } };
  await jobs.scheduleTwinUpdate(jobId, '*', patch, new Date(Date.now() + 86_400_000), 60);
  await jobs.cancelJob(jobId);
  assert.equal((await ended(jobId)).status, 'cancelled');
});
