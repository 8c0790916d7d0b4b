-- Tables and triggers on sqlite, revision 0015. Made by: python -m inspect_xai.storage.schema

CREATE TABLE alert_sent (
    alert_id TEXT NOT NULL,
    channel TEXT NOT NULL,
    sent_at TEXT NOT NULL,
    text TEXT NOT NULL,
    CONSTRAINT pk_alert_sent PRIMARY KEY (alert_id, channel)
)
 STRICT;

CREATE TABLE drift_baseline (
    id INTEGER NOT NULL,
    first_day TEXT NOT NULL,
    last_day TEXT NOT NULL,
    set_at TEXT NOT NULL,
    set_by TEXT NOT NULL,
    content BLOB NOT NULL,
    CONSTRAINT pk_drift_baseline PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE ledger_event (
    id INTEGER NOT NULL,
    occurred_at TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL,
    previous_hash TEXT NOT NULL,
    hash TEXT NOT NULL,
    signed_by TEXT,
    signature TEXT,
    CONSTRAINT pk_ledger_event PRIMARY KEY (id),
    CONSTRAINT uq_ledger_event_hash UNIQUE (hash)
)
 STRICT;

CREATE INDEX ix_ledger_event_kind_subject ON ledger_event (kind, subject);

CREATE INDEX ix_ledger_event_occurred_at ON ledger_event (occurred_at);

CREATE TABLE legal_hold (
    id INTEGER NOT NULL,
    product TEXT NOT NULL,
    lot TEXT NOT NULL,
    serial TEXT NOT NULL,
    reason TEXT NOT NULL,
    placed_at TEXT NOT NULL,
    placed_by TEXT NOT NULL,
    released_at TEXT,
    released_by TEXT NOT NULL,
    CONSTRAINT pk_legal_hold PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE map_blob (
    id INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    codec TEXT NOT NULL,
    dtype TEXT NOT NULL,
    precision TEXT NOT NULL,
    shape TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    data BLOB,
    deleted_at TEXT,
    CONSTRAINT pk_map_blob PRIMARY KEY (id),
    CONSTRAINT uq_map_blob_sha256 UNIQUE (sha256)
)
 STRICT;

CREATE TABLE model (
    id INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    card TEXT NOT NULL,
    status TEXT NOT NULL,
    registered_at TEXT NOT NULL,
    registered_by TEXT NOT NULL,
    status_at TEXT NOT NULL,
    status_by TEXT NOT NULL,
    golden_result TEXT,
    calibration TEXT,
    bundle_sha256 TEXT,
    CONSTRAINT pk_model PRIMARY KEY (id),
    CONSTRAINT ck_model_status CHECK (status IN ('candidate', 'approved', 'retired')),
    CONSTRAINT uq_model_fingerprint UNIQUE (fingerprint)
)
 STRICT;

CREATE TABLE policy (
    id INTEGER NOT NULL,
    version TEXT NOT NULL,
    content TEXT,
    registered_at TEXT NOT NULL,
    CONSTRAINT pk_policy PRIMARY KEY (id),
    CONSTRAINT uq_policy_version UNIQUE (version)
)
 STRICT;

CREATE TABLE product (
    id INTEGER NOT NULL,
    name TEXT NOT NULL,
    CONSTRAINT pk_product PRIMARY KEY (id),
    CONSTRAINT uq_product_name UNIQUE (name)
)
 STRICT;

CREATE TABLE reason_code (
    id INTEGER NOT NULL,
    code TEXT NOT NULL,
    meaning TEXT NOT NULL,
    CONSTRAINT pk_reason_code PRIMARY KEY (id),
    CONSTRAINT uq_reason_code_code UNIQUE (code)
)
 STRICT;

CREATE TABLE retention_rule (
    id INTEGER NOT NULL,
    product_name TEXT NOT NULL,
    data_kind TEXT NOT NULL,
    keep_days INTEGER NOT NULL,
    set_at TEXT NOT NULL,
    set_by TEXT NOT NULL,
    CONSTRAINT pk_retention_rule PRIMARY KEY (id),
    CONSTRAINT ck_retention_rule_data_kind CHECK (data_kind IN ('picture', 'map', 'row')),
    CONSTRAINT uq_retention_rule_product_name_data_kind UNIQUE (product_name, data_kind)
)
 STRICT;

CREATE TABLE review_cursor (
    id INTEGER NOT NULL,
    last_enqueued_id INTEGER NOT NULL,
    CONSTRAINT pk_review_cursor PRIMARY KEY (id)
)
 STRICT;

CREATE TABLE run (
    id INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    started_at TEXT NOT NULL,
    provider TEXT NOT NULL,
    versions TEXT NOT NULL,
    settings TEXT NOT NULL,
    CONSTRAINT pk_run PRIMARY KEY (id),
    CONSTRAINT uq_run_run_id UNIQUE (run_id)
)
 STRICT;

CREATE TABLE study (
    id INTEGER NOT NULL,
    name TEXT NOT NULL,
    trials INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    created_by TEXT NOT NULL,
    CONSTRAINT pk_study PRIMARY KEY (id),
    CONSTRAINT uq_study_name UNIQUE (name)
)
 STRICT;

CREATE TABLE web_session (
    id_sha256 TEXT NOT NULL,
    person TEXT NOT NULL,
    used_at TEXT NOT NULL,
    language TEXT NOT NULL,
    theme TEXT NOT NULL,
    skipped TEXT NOT NULL,
    CONSTRAINT pk_web_session PRIMARY KEY (id_sha256)
)
 STRICT;

CREATE INDEX ix_web_session_used_at ON web_session (used_at);

CREATE TABLE audit (
    id INTEGER NOT NULL,
    audit_id TEXT NOT NULL,
    model_id INTEGER NOT NULL,
    audited_at TEXT NOT NULL,
    settings TEXT NOT NULL,
    numbers TEXT NOT NULL,
    CONSTRAINT pk_audit PRIMARY KEY (id),
    CONSTRAINT uq_audit_audit_id UNIQUE (audit_id),
    CONSTRAINT fk_audit_model_id FOREIGN KEY(model_id) REFERENCES model (id)
)
 STRICT;

CREATE INDEX ix_audit_model_id ON audit (model_id);

CREATE TABLE claim (
    id INTEGER NOT NULL,
    source TEXT NOT NULL,
    file_name TEXT NOT NULL,
    model_id INTEGER NOT NULL,
    policy_id INTEGER NOT NULL,
    file_version TEXT NOT NULL,
    owner TEXT NOT NULL,
    lease_expires_at TEXT,
    CONSTRAINT pk_claim PRIMARY KEY (id),
    CONSTRAINT uq_claim_source_file_name_model_id_policy_id UNIQUE (source, file_name, model_id, policy_id),
    CONSTRAINT fk_claim_model_id FOREIGN KEY(model_id) REFERENCES model (id),
    CONSTRAINT fk_claim_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id)
)
 STRICT;

CREATE TABLE lot (
    id INTEGER NOT NULL,
    product_id INTEGER NOT NULL,
    code TEXT NOT NULL,
    CONSTRAINT pk_lot PRIMARY KEY (id),
    CONSTRAINT uq_lot_product_id_code UNIQUE (product_id, code),
    CONSTRAINT fk_lot_product_id FOREIGN KEY(product_id) REFERENCES product (id)
)
 STRICT;

CREATE INDEX ix_lot_code ON lot (code);

CREATE TABLE part (
    id INTEGER NOT NULL,
    lot_id INTEGER NOT NULL,
    serial TEXT NOT NULL,
    CONSTRAINT pk_part PRIMARY KEY (id),
    CONSTRAINT uq_part_lot_id_serial UNIQUE (lot_id, serial),
    CONSTRAINT fk_part_lot_id FOREIGN KEY(lot_id) REFERENCES lot (id)
)
 STRICT;

CREATE INDEX ix_part_serial ON part (serial);

CREATE TABLE capture (
    id INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    pixels_sha256 TEXT NOT NULL,
    file_name TEXT NOT NULL,
    part_id INTEGER NOT NULL,
    captured_at TEXT NOT NULL,
    line TEXT NOT NULL,
    station TEXT NOT NULL,
    camera TEXT NOT NULL,
    "view" TEXT NOT NULL,
    shift TEXT NOT NULL,
    height_px INTEGER NOT NULL,
    width_px INTEGER NOT NULL,
    archived_to TEXT NOT NULL,
    picture_deleted_at TEXT,
    picture_going_at TEXT,
    identity_source TEXT,
    CONSTRAINT pk_capture PRIMARY KEY (id),
    CONSTRAINT uq_capture_sha256 UNIQUE (sha256),
    CONSTRAINT fk_capture_part_id FOREIGN KEY(part_id) REFERENCES part (id)
)
 STRICT;

CREATE INDEX ix_capture_captured_at ON capture (captured_at);

CREATE INDEX ix_capture_line_station_captured_at ON capture (line, station, captured_at);

CREATE INDEX ix_capture_part_id ON capture (part_id);

CREATE TABLE inspection (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    capture_id INTEGER NOT NULL,
    model_id INTEGER NOT NULL,
    policy_id INTEGER NOT NULL,
    run_id INTEGER NOT NULL,
    inspected_at TEXT NOT NULL,
    recorded_at TEXT NOT NULL,
    model_status TEXT NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT NOT NULL,
    label TEXT NOT NULL,
    score REAL NOT NULL,
    threshold REAL NOT NULL,
    predicted_label TEXT,
    predicted_score REAL,
    margin REAL,
    worst_tile INTEGER,
    scores TEXT,
    explain_reason TEXT NOT NULL,
    failure_kind TEXT NOT NULL,
    failure_message TEXT NOT NULL,
    duration_ms REAL NOT NULL,
    CONSTRAINT uq_inspection_capture_id_model_id_policy_id UNIQUE (capture_id, model_id, policy_id),
    CONSTRAINT ck_inspection_verdict CHECK (verdict IN ('OK', 'NG', 'UNSURE')),
    CONSTRAINT fk_inspection_capture_id FOREIGN KEY(capture_id) REFERENCES capture (id),
    CONSTRAINT fk_inspection_model_id FOREIGN KEY(model_id) REFERENCES model (id),
    CONSTRAINT fk_inspection_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id),
    CONSTRAINT fk_inspection_run_id FOREIGN KEY(run_id) REFERENCES run (id)
)
 STRICT;

CREATE INDEX ix_inspection_inspected_at ON inspection (inspected_at);

CREATE INDEX ix_inspection_label_inspected_at ON inspection (label, inspected_at);

CREATE INDEX ix_inspection_model_id ON inspection (model_id);

CREATE INDEX ix_inspection_run_id ON inspection (run_id);

CREATE INDEX ix_inspection_verdict_inspected_at ON inspection (verdict, inspected_at);

CREATE TABLE explanation (
    id INTEGER NOT NULL,
    inspection_id INTEGER NOT NULL,
    status TEXT NOT NULL,
    method TEXT NOT NULL,
    target TEXT NOT NULL,
    contrast_label TEXT NOT NULL,
    mu REAL NOT NULL,
    baseline TEXT NOT NULL,
    settings TEXT NOT NULL,
    forward_passes INTEGER NOT NULL,
    provider TEXT NOT NULL,
    duration_ms REAL NOT NULL,
    timings_ms TEXT NOT NULL,
    notes TEXT NOT NULL,
    faithfulness TEXT NOT NULL,
    coverage REAL NOT NULL,
    energy_in_roi REAL,
    drop_percent REAL,
    drop_percent_random REAL,
    increase_percent REAL,
    increase_percent_random REAL,
    deletion_percent REAL,
    deletion_percent_random REAL,
    faithfulness_passes INTEGER,
    fused_blob_id INTEGER NOT NULL,
    CONSTRAINT pk_explanation PRIMARY KEY (id),
    CONSTRAINT ck_explanation_status CHECK (status IN ('explained', 'no_evidence', 'not_explained', 'failed')),
    CONSTRAINT uq_explanation_inspection_id UNIQUE (inspection_id),
    CONSTRAINT fk_explanation_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE,
    CONSTRAINT fk_explanation_fused_blob_id FOREIGN KEY(fused_blob_id) REFERENCES map_blob (id)
)
 STRICT;

CREATE INDEX ix_explanation_fused_blob_id ON explanation (fused_blob_id);

CREATE TABLE image_statistics (
    inspection_id INTEGER NOT NULL,
    brightness REAL NOT NULL,
    contrast REAL NOT NULL,
    clipped_share REAL NOT NULL,
    sharpness REAL NOT NULL,
    noise REAL NOT NULL,
    embedding BLOB,
    CONSTRAINT pk_image_statistics PRIMARY KEY (inspection_id),
    CONSTRAINT fk_image_statistics_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE
)
 STRICT;

CREATE TABLE review (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    inspection_id INTEGER NOT NULL,
    supersedes_id INTEGER,
    reviewer TEXT NOT NULL,
    reviewed_at TEXT NOT NULL,
    decision TEXT NOT NULL,
    verdict TEXT NOT NULL,
    true_label TEXT NOT NULL,
    reason_code_id INTEGER,
    map_rating TEXT NOT NULL,
    blind INTEGER NOT NULL,
    box TEXT,
    note TEXT NOT NULL,
    CONSTRAINT ck_review_decision CHECK (decision IN ('confirm', 'overturn', 'undecided')),
    CONSTRAINT uq_review_supersedes_id UNIQUE (supersedes_id),
    CONSTRAINT fk_review_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE,
    CONSTRAINT fk_review_supersedes_id FOREIGN KEY(supersedes_id) REFERENCES review (id) ON DELETE CASCADE,
    CONSTRAINT fk_review_reason_code_id FOREIGN KEY(reason_code_id) REFERENCES reason_code (id)
)
 STRICT;

CREATE INDEX ix_review_inspection_id_reviewed_at ON review (inspection_id, reviewed_at);

CREATE INDEX ix_review_reviewed_at ON review (reviewed_at);

CREATE TABLE review_queue_item (
    inspection_id INTEGER NOT NULL,
    state TEXT NOT NULL,
    priority INTEGER NOT NULL,
    reason TEXT NOT NULL,
    verdict TEXT NOT NULL,
    label TEXT NOT NULL,
    line TEXT NOT NULL,
    station TEXT NOT NULL,
    shift TEXT NOT NULL,
    inspected_at TEXT NOT NULL,
    claimed_by TEXT NOT NULL,
    claimed_until TEXT,
    first_reviewer TEXT NOT NULL,
    second_reviewer TEXT DEFAULT '' NOT NULL,
    blind INTEGER DEFAULT 0 NOT NULL,
    CONSTRAINT pk_review_queue_item PRIMARY KEY (inspection_id),
    CONSTRAINT ck_review_queue_item_state CHECK (state IN ('open', 'done')),
    CONSTRAINT fk_review_queue_item_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE
)
 STRICT;

CREATE INDEX ix_review_queue_item_claimed_by ON review_queue_item (claimed_by);

CREATE INDEX ix_review_queue_item_state_priority_inspection_id ON review_queue_item (state, priority, inspection_id);

CREATE TABLE study_part (
    study_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    inspection_id INTEGER NOT NULL,
    CONSTRAINT pk_study_part PRIMARY KEY (study_id, position),
    CONSTRAINT uq_study_part_study_id_inspection_id UNIQUE (study_id, inspection_id),
    CONSTRAINT fk_study_part_study_id FOREIGN KEY(study_id) REFERENCES study (id) ON DELETE CASCADE,
    CONSTRAINT fk_study_part_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE
)
 STRICT;

CREATE INDEX ix_study_part_inspection_id ON study_part (inspection_id);

CREATE TABLE explanation_region (
    explanation_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    top_px INTEGER NOT NULL,
    left_px INTEGER NOT NULL,
    height_px INTEGER NOT NULL,
    width_px INTEGER NOT NULL,
    area_px INTEGER NOT NULL,
    peak REAL NOT NULL,
    mass REAL NOT NULL,
    CONSTRAINT pk_explanation_region PRIMARY KEY (explanation_id, position),
    CONSTRAINT fk_explanation_region_explanation_id FOREIGN KEY(explanation_id) REFERENCES explanation (id) ON DELETE CASCADE
)
 STRICT;

CREATE TABLE explanation_tile (
    explanation_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    tile_index INTEGER NOT NULL,
    top_px INTEGER NOT NULL,
    left_px INTEGER NOT NULL,
    height_px INTEGER NOT NULL,
    width_px INTEGER NOT NULL,
    status TEXT NOT NULL,
    scores TEXT NOT NULL,
    baseline_score REAL,
    score_spread REAL,
    CONSTRAINT pk_explanation_tile PRIMARY KEY (explanation_id, position),
    CONSTRAINT ck_explanation_tile_status CHECK (status IN ('explained', 'no_evidence', 'not_explained', 'failed')),
    CONSTRAINT fk_explanation_tile_explanation_id FOREIGN KEY(explanation_id) REFERENCES explanation (id) ON DELETE CASCADE
)
 STRICT;

CREATE TABLE review_request_key (
    "key" TEXT NOT NULL,
    review_id INTEGER NOT NULL,
    CONSTRAINT pk_review_request_key PRIMARY KEY ("key"),
    CONSTRAINT fk_review_request_key_review_id FOREIGN KEY(review_id) REFERENCES review (id) ON DELETE CASCADE
)
 STRICT;

CREATE INDEX ix_review_request_key_review_id ON review_request_key (review_id);

CREATE TABLE study_task (
    id INTEGER NOT NULL,
    study_id INTEGER NOT NULL,
    appraiser TEXT NOT NULL,
    trial INTEGER NOT NULL,
    run_order INTEGER NOT NULL,
    part_position INTEGER NOT NULL,
    CONSTRAINT pk_study_task PRIMARY KEY (id),
    CONSTRAINT fk_study_task_study_id_part_position FOREIGN KEY(study_id, part_position) REFERENCES study_part (study_id, position) ON DELETE CASCADE,
    CONSTRAINT uq_study_task_study_id_appraiser_trial_run_order UNIQUE (study_id, appraiser, trial, run_order)
)
 STRICT;

CREATE TABLE block_map (
    explanation_id INTEGER NOT NULL,
    tile_position INTEGER NOT NULL,
    position INTEGER NOT NULL,
    tensor TEXT NOT NULL,
    channels INTEGER NOT NULL,
    positive_channels INTEGER NOT NULL,
    kept_channels INTEGER NOT NULL,
    constant_channels INTEGER NOT NULL,
    beta REAL,
    threshold REAL,
    score_min REAL,
    score_max REAL,
    otsu_threshold REAL,
    note TEXT NOT NULL,
    predicted_scores INTEGER DEFAULT 0 NOT NULL,
    grid TEXT,
    sums_blob_id INTEGER,
    CONSTRAINT pk_block_map PRIMARY KEY (explanation_id, tile_position, position),
    CONSTRAINT fk_block_map_explanation_id_tile_position FOREIGN KEY(explanation_id, tile_position) REFERENCES explanation_tile (explanation_id, position) ON DELETE CASCADE,
    CONSTRAINT fk_block_map_sums_blob_id FOREIGN KEY(sums_blob_id) REFERENCES map_blob (id)
)
 STRICT;

CREATE INDEX ix_block_map_sums_blob_id ON block_map (sums_blob_id);

CREATE TABLE study_rating (
    id INTEGER NOT NULL,
    task_id INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    answered_by TEXT NOT NULL,
    answered_at TEXT NOT NULL,
    CONSTRAINT pk_study_rating PRIMARY KEY (id),
    CONSTRAINT ck_study_rating_verdict CHECK (verdict IN ('OK', 'NG', 'UNSURE')),
    CONSTRAINT fk_study_rating_task_id FOREIGN KEY(task_id) REFERENCES study_task (id) ON DELETE CASCADE
)
 STRICT;

CREATE INDEX ix_study_rating_task_id ON study_rating (task_id);

-- Ledger and reviews are append-only. One statement per paragraph.
CREATE TRIGGER IF NOT EXISTS ledger_event_no_update BEFORE UPDATE ON ledger_event
BEGIN
    SELECT RAISE(ABORT, 'ledger_event is append-only');
END;

CREATE TRIGGER IF NOT EXISTS ledger_event_no_delete BEFORE DELETE ON ledger_event
BEGIN
    SELECT RAISE(ABORT, 'ledger_event is append-only');
END;

-- INSERT OR REPLACE removes the row in its way without asking the trigger above.
CREATE TRIGGER IF NOT EXISTS ledger_event_no_replace BEFORE INSERT ON ledger_event
WHEN EXISTS (SELECT 1 FROM ledger_event WHERE id = NEW.id OR hash = NEW.hash)
BEGIN
    SELECT RAISE(ABORT, 'ledger_event is append-only');
END;

CREATE TRIGGER IF NOT EXISTS review_no_update BEFORE UPDATE ON review
BEGIN
    SELECT RAISE(ABORT, 'review is append-only');
END;

-- A review goes with its inspection, when retention takes the rows, and at no other time.
CREATE TRIGGER IF NOT EXISTS review_no_delete BEFORE DELETE ON review
WHEN EXISTS (SELECT 1 FROM inspection WHERE id = OLD.inspection_id)
BEGIN
    SELECT RAISE(ABORT, 'review is append-only');
END;

CREATE TRIGGER IF NOT EXISTS review_no_replace BEFORE INSERT ON review
WHEN EXISTS (SELECT 1 FROM review WHERE id = NEW.id OR supersedes_id = NEW.supersedes_id)
BEGIN
    SELECT RAISE(ABORT, 'review is append-only: this answer was corrected already');
END;
