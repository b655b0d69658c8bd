BEGIN TRANSACTION;
CREATE TABLE entry (
  seq INTEGER PRIMARY KEY, key TEXT NOT NULL, state TEXT NOT NULL, data TEXT NOT NULL
);
INSERT INTO "entry" VALUES(1,'plan/df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e','approved','{"name": "small"}');
INSERT INTO "entry" VALUES(2,'df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e/train/gan/0/0','reserved','{"folder": "82580203918388ef-0", "reservation": "{\"event\":{\"dimension\":304,\"mechanism\":\"subsampled_gaussian\",\"model\":\"gan\",\"noise_multiplier\":4.0,\"q\":0.16,\"steps\":2},\"id\":2,\"steps\":2}"}');
INSERT INTO "entry" VALUES(3,'df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e/train/gan/0/0','started','{"folder": "82580203918388ef-0", "reservation": "{\"event\":{\"dimension\":304,\"mechanism\":\"subsampled_gaussian\",\"model\":\"gan\",\"noise_multiplier\":4.0,\"q\":0.16,\"steps\":2},\"id\":2,\"steps\":2}"}');
INSERT INTO "entry" VALUES(4,'df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e/train/gan/0/0','cleared','{"digests": ["02878c37f8b558260c23cce83ba01932c91373e9fb99466fc4422016f543d1ca"], "head": "3:6e6365f44aba18546215c4d2c1d21226ae7b83bd5a389ef9fa2682024a93fb8a"}');
INSERT INTO "entry" VALUES(5,'df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e/train/gan/0/0','answered','{}');
INSERT INTO "entry" VALUES(6,'df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e/synthesize//0/0','reserved','{"folder": "c72f74b1b10e33de-0", "reservation": ""}');
INSERT INTO "entry" VALUES(7,'df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e/synthesize//0/0','started','{"folder": "c72f74b1b10e33de-0", "reservation": ""}');
INSERT INTO "entry" VALUES(8,'df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e/synthesize//0/0','cleared','{"digests": ["7bd8286a3f4abf4de4ebcdd9b3f4f806cb12633330967d854edfdb2cc1379d1b"], "head": "4:44b350dfb075291a8c65a369a0d64bbc7eaffff205a80dd48cafc0ec7f187c7d"}');
INSERT INTO "entry" VALUES(9,'df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e/synthesize//0/0','answered','{}');
CREATE INDEX by_key ON entry (key, seq);
CREATE TRIGGER no_update BEFORE UPDATE ON entry
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON entry
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
COMMIT;
