-- Tables and triggers on postgresql, revision 0015. Made by: python -m inspect_xai.storage.schema

CREATE TABLE alert_sent (
    alert_id TEXT NOT NULL,
    channel TEXT NOT NULL,
    sent_at TIMESTAMP WITH TIME ZONE NOT NULL,
    text TEXT NOT NULL,
    CONSTRAINT pk_alert_sent PRIMARY KEY (alert_id, channel)
);

CREATE TABLE drift_baseline (
    id BIGSERIAL NOT NULL,
    first_day TEXT NOT NULL,
    last_day TEXT NOT NULL,
    set_at TIMESTAMP WITH TIME ZONE NOT NULL,
    set_by TEXT NOT NULL,
    content BYTEA NOT NULL,
    CONSTRAINT pk_drift_baseline PRIMARY KEY (id)
);

CREATE TABLE ledger_event (
    id BIGINT NOT NULL,
    occurred_at TIMESTAMP WITH TIME ZONE NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL,
    previous_hash TEXT NOT NULL,
    hash TEXT NOT NULL,
    signed_by TEXT,
    signature TEXT,
    CONSTRAINT pk_ledger_event PRIMARY KEY (id),
    CONSTRAINT uq_ledger_event_hash UNIQUE (hash)
);

CREATE INDEX ix_ledger_event_kind_subject ON ledger_event (kind, subject);

CREATE INDEX ix_ledger_event_occurred_at ON ledger_event (occurred_at);

CREATE TABLE legal_hold (
    id BIGSERIAL NOT NULL,
    product TEXT NOT NULL,
    lot TEXT NOT NULL,
    serial TEXT NOT NULL,
    reason TEXT NOT NULL,
    placed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    placed_by TEXT NOT NULL,
    released_at TIMESTAMP WITH TIME ZONE,
    released_by TEXT NOT NULL,
    CONSTRAINT pk_legal_hold PRIMARY KEY (id)
);

CREATE TABLE map_blob (
    id BIGSERIAL NOT NULL,
    sha256 TEXT NOT NULL,
    codec TEXT NOT NULL,
    dtype TEXT NOT NULL,
    precision TEXT NOT NULL,
    shape JSONB NOT NULL,
    size_bytes BIGINT NOT NULL,
    data BYTEA,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_map_blob PRIMARY KEY (id),
    CONSTRAINT uq_map_blob_sha256 UNIQUE (sha256)
);

CREATE TABLE model (
    id BIGSERIAL NOT NULL,
    fingerprint TEXT NOT NULL,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    card JSONB NOT NULL,
    status TEXT NOT NULL,
    registered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    registered_by TEXT NOT NULL,
    status_at TIMESTAMP WITH TIME ZONE NOT NULL,
    status_by TEXT NOT NULL,
    golden_result JSONB,
    calibration JSONB,
    bundle_sha256 TEXT,
    CONSTRAINT pk_model PRIMARY KEY (id),
    CONSTRAINT ck_model_status CHECK (status IN ('candidate', 'approved', 'retired')),
    CONSTRAINT uq_model_fingerprint UNIQUE (fingerprint)
);

CREATE TABLE policy (
    id BIGSERIAL NOT NULL,
    version TEXT NOT NULL,
    content JSONB,
    registered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_policy PRIMARY KEY (id),
    CONSTRAINT uq_policy_version UNIQUE (version)
);

CREATE TABLE product (
    id BIGSERIAL NOT NULL,
    name TEXT NOT NULL,
    CONSTRAINT pk_product PRIMARY KEY (id),
    CONSTRAINT uq_product_name UNIQUE (name)
);

CREATE TABLE reason_code (
    id BIGSERIAL NOT NULL,
    code TEXT NOT NULL,
    meaning TEXT NOT NULL,
    CONSTRAINT pk_reason_code PRIMARY KEY (id),
    CONSTRAINT uq_reason_code_code UNIQUE (code)
);

CREATE TABLE retention_rule (
    id BIGSERIAL NOT NULL,
    product_name TEXT NOT NULL,
    data_kind TEXT NOT NULL,
    keep_days BIGINT NOT NULL,
    set_at TIMESTAMP WITH TIME ZONE NOT NULL,
    set_by TEXT NOT NULL,
    CONSTRAINT pk_retention_rule PRIMARY KEY (id),
    CONSTRAINT ck_retention_rule_data_kind CHECK (data_kind IN ('picture', 'map', 'row')),
    CONSTRAINT uq_retention_rule_product_name_data_kind UNIQUE (product_name, data_kind)
);

CREATE TABLE review_cursor (
    id BIGINT NOT NULL,
    last_enqueued_id BIGINT NOT NULL,
    CONSTRAINT pk_review_cursor PRIMARY KEY (id)
);

CREATE TABLE run (
    id BIGSERIAL NOT NULL,
    run_id TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    provider TEXT NOT NULL,
    versions JSONB NOT NULL,
    settings JSONB NOT NULL,
    CONSTRAINT pk_run PRIMARY KEY (id),
    CONSTRAINT uq_run_run_id UNIQUE (run_id)
);

CREATE TABLE study (
    id BIGSERIAL NOT NULL,
    name TEXT NOT NULL,
    trials BIGINT NOT NULL,
    seed BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    created_by TEXT NOT NULL,
    CONSTRAINT pk_study PRIMARY KEY (id),
    CONSTRAINT uq_study_name UNIQUE (name)
);

CREATE TABLE web_session (
    id_sha256 TEXT NOT NULL,
    person TEXT NOT NULL,
    used_at TIMESTAMP WITH TIME ZONE NOT NULL,
    language TEXT NOT NULL,
    theme TEXT NOT NULL,
    skipped JSONB NOT NULL,
    CONSTRAINT pk_web_session PRIMARY KEY (id_sha256)
);

CREATE INDEX ix_web_session_used_at ON web_session (used_at);

CREATE TABLE audit (
    id BIGSERIAL NOT NULL,
    audit_id TEXT NOT NULL,
    model_id BIGINT NOT NULL,
    audited_at TIMESTAMP WITH TIME ZONE NOT NULL,
    settings JSONB NOT NULL,
    numbers JSONB NOT NULL,
    CONSTRAINT pk_audit PRIMARY KEY (id),
    CONSTRAINT uq_audit_audit_id UNIQUE (audit_id),
    CONSTRAINT fk_audit_model_id FOREIGN KEY(model_id) REFERENCES model (id)
);

CREATE INDEX ix_audit_model_id ON audit (model_id);

CREATE TABLE claim (
    id BIGSERIAL NOT NULL,
    source TEXT NOT NULL,
    file_name TEXT NOT NULL,
    model_id BIGINT NOT NULL,
    policy_id BIGINT NOT NULL,
    file_version TEXT NOT NULL,
    owner TEXT NOT NULL,
    lease_expires_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_claim PRIMARY KEY (id),
    CONSTRAINT uq_claim_source_file_name_model_id_policy_id UNIQUE (source, file_name, model_id, policy_id),
    CONSTRAINT fk_claim_model_id FOREIGN KEY(model_id) REFERENCES model (id),
    CONSTRAINT fk_claim_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id)
);

CREATE TABLE lot (
    id BIGSERIAL NOT NULL,
    product_id BIGINT NOT NULL,
    code TEXT NOT NULL,
    CONSTRAINT pk_lot PRIMARY KEY (id),
    CONSTRAINT uq_lot_product_id_code UNIQUE (product_id, code),
    CONSTRAINT fk_lot_product_id FOREIGN KEY(product_id) REFERENCES product (id)
);

CREATE INDEX ix_lot_code ON lot (code);

CREATE TABLE part (
    id BIGSERIAL NOT NULL,
    lot_id BIGINT NOT NULL,
    serial TEXT NOT NULL,
    CONSTRAINT pk_part PRIMARY KEY (id),
    CONSTRAINT uq_part_lot_id_serial UNIQUE (lot_id, serial),
    CONSTRAINT fk_part_lot_id FOREIGN KEY(lot_id) REFERENCES lot (id)
);

CREATE INDEX ix_part_serial ON part (serial);

CREATE TABLE capture (
    id BIGSERIAL NOT NULL,
    sha256 TEXT NOT NULL,
    pixels_sha256 TEXT NOT NULL,
    file_name TEXT NOT NULL,
    part_id BIGINT NOT NULL,
    captured_at TIMESTAMP WITH TIME ZONE NOT NULL,
    line TEXT NOT NULL,
    station TEXT NOT NULL,
    camera TEXT NOT NULL,
    view TEXT NOT NULL,
    shift TEXT NOT NULL,
    height_px BIGINT NOT NULL,
    width_px BIGINT NOT NULL,
    archived_to TEXT NOT NULL,
    picture_deleted_at TIMESTAMP WITH TIME ZONE,
    picture_going_at TIMESTAMP WITH TIME ZONE,
    identity_source TEXT,
    CONSTRAINT pk_capture PRIMARY KEY (id),
    CONSTRAINT uq_capture_sha256 UNIQUE (sha256),
    CONSTRAINT fk_capture_part_id FOREIGN KEY(part_id) REFERENCES part (id)
);

CREATE INDEX ix_capture_captured_at ON capture (captured_at);

CREATE INDEX ix_capture_line_station_captured_at ON capture (line, station, captured_at);

CREATE INDEX ix_capture_part_id ON capture (part_id);

CREATE TABLE inspection (
    id BIGSERIAL NOT NULL,
    capture_id BIGINT NOT NULL,
    model_id BIGINT NOT NULL,
    policy_id BIGINT NOT NULL,
    run_id BIGINT NOT NULL,
    inspected_at TIMESTAMP WITH TIME ZONE NOT NULL,
    recorded_at TIMESTAMP WITH TIME ZONE NOT NULL,
    model_status TEXT NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT NOT NULL,
    label TEXT NOT NULL,
    score DOUBLE PRECISION NOT NULL,
    threshold DOUBLE PRECISION NOT NULL,
    predicted_label TEXT,
    predicted_score DOUBLE PRECISION,
    margin DOUBLE PRECISION,
    worst_tile BIGINT,
    scores JSONB,
    explain_reason TEXT NOT NULL,
    failure_kind TEXT NOT NULL,
    failure_message TEXT NOT NULL,
    duration_ms DOUBLE PRECISION NOT NULL,
    CONSTRAINT pk_inspection PRIMARY KEY (id),
    CONSTRAINT uq_inspection_capture_id_model_id_policy_id UNIQUE (capture_id, model_id, policy_id),
    CONSTRAINT ck_inspection_verdict CHECK (verdict IN ('OK', 'NG', 'UNSURE')),
    CONSTRAINT fk_inspection_capture_id FOREIGN KEY(capture_id) REFERENCES capture (id),
    CONSTRAINT fk_inspection_model_id FOREIGN KEY(model_id) REFERENCES model (id),
    CONSTRAINT fk_inspection_policy_id FOREIGN KEY(policy_id) REFERENCES policy (id),
    CONSTRAINT fk_inspection_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);

CREATE INDEX ix_inspection_inspected_at ON inspection (inspected_at);

CREATE INDEX ix_inspection_label_inspected_at ON inspection (label, inspected_at);

CREATE INDEX ix_inspection_model_id ON inspection (model_id);

CREATE INDEX ix_inspection_run_id ON inspection (run_id);

CREATE INDEX ix_inspection_verdict_inspected_at ON inspection (verdict, inspected_at);

CREATE TABLE explanation (
    id BIGSERIAL NOT NULL,
    inspection_id BIGINT NOT NULL,
    status TEXT NOT NULL,
    method TEXT NOT NULL,
    target TEXT NOT NULL,
    contrast_label TEXT NOT NULL,
    mu DOUBLE PRECISION NOT NULL,
    baseline TEXT NOT NULL,
    settings JSONB NOT NULL,
    forward_passes BIGINT NOT NULL,
    provider TEXT NOT NULL,
    duration_ms DOUBLE PRECISION NOT NULL,
    timings_ms JSONB NOT NULL,
    notes JSONB NOT NULL,
    faithfulness JSONB NOT NULL,
    coverage DOUBLE PRECISION NOT NULL,
    energy_in_roi DOUBLE PRECISION,
    drop_percent DOUBLE PRECISION,
    drop_percent_random DOUBLE PRECISION,
    increase_percent DOUBLE PRECISION,
    increase_percent_random DOUBLE PRECISION,
    deletion_percent DOUBLE PRECISION,
    deletion_percent_random DOUBLE PRECISION,
    faithfulness_passes BIGINT,
    fused_blob_id BIGINT NOT NULL,
    CONSTRAINT pk_explanation PRIMARY KEY (id),
    CONSTRAINT ck_explanation_status CHECK (status IN ('explained', 'no_evidence', 'not_explained', 'failed')),
    CONSTRAINT uq_explanation_inspection_id UNIQUE (inspection_id),
    CONSTRAINT fk_explanation_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE,
    CONSTRAINT fk_explanation_fused_blob_id FOREIGN KEY(fused_blob_id) REFERENCES map_blob (id)
);

CREATE INDEX ix_explanation_fused_blob_id ON explanation (fused_blob_id);

CREATE TABLE image_statistics (
    inspection_id BIGINT NOT NULL,
    brightness DOUBLE PRECISION NOT NULL,
    contrast DOUBLE PRECISION NOT NULL,
    clipped_share DOUBLE PRECISION NOT NULL,
    sharpness DOUBLE PRECISION NOT NULL,
    noise DOUBLE PRECISION NOT NULL,
    embedding BYTEA,
    CONSTRAINT pk_image_statistics PRIMARY KEY (inspection_id),
    CONSTRAINT fk_image_statistics_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE
);

CREATE TABLE review (
    id BIGSERIAL NOT NULL,
    inspection_id BIGINT NOT NULL,
    supersedes_id BIGINT,
    reviewer TEXT NOT NULL,
    reviewed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    decision TEXT NOT NULL,
    verdict TEXT NOT NULL,
    true_label TEXT NOT NULL,
    reason_code_id BIGINT,
    map_rating TEXT NOT NULL,
    blind BIGINT NOT NULL,
    box JSONB,
    note TEXT NOT NULL,
    CONSTRAINT pk_review PRIMARY KEY (id),
    CONSTRAINT ck_review_decision CHECK (decision IN ('confirm', 'overturn', 'undecided')),
    CONSTRAINT uq_review_supersedes_id UNIQUE (supersedes_id),
    CONSTRAINT fk_review_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE,
    CONSTRAINT fk_review_supersedes_id FOREIGN KEY(supersedes_id) REFERENCES review (id) ON DELETE CASCADE,
    CONSTRAINT fk_review_reason_code_id FOREIGN KEY(reason_code_id) REFERENCES reason_code (id)
);

CREATE INDEX ix_review_inspection_id_reviewed_at ON review (inspection_id, reviewed_at);

CREATE INDEX ix_review_reviewed_at ON review (reviewed_at);

CREATE TABLE review_queue_item (
    inspection_id BIGINT NOT NULL,
    state TEXT NOT NULL,
    priority BIGINT NOT NULL,
    reason TEXT NOT NULL,
    verdict TEXT NOT NULL,
    label TEXT NOT NULL,
    line TEXT NOT NULL,
    station TEXT NOT NULL,
    shift TEXT NOT NULL,
    inspected_at TIMESTAMP WITH TIME ZONE NOT NULL,
    claimed_by TEXT NOT NULL,
    claimed_until TIMESTAMP WITH TIME ZONE,
    first_reviewer TEXT NOT NULL,
    second_reviewer TEXT DEFAULT '' NOT NULL,
    blind BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_review_queue_item PRIMARY KEY (inspection_id),
    CONSTRAINT ck_review_queue_item_state CHECK (state IN ('open', 'done')),
    CONSTRAINT fk_review_queue_item_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE
);

CREATE INDEX ix_review_queue_item_claimed_by ON review_queue_item (claimed_by);

CREATE INDEX ix_review_queue_item_state_priority_inspection_id ON review_queue_item (state, priority, inspection_id);

CREATE TABLE study_part (
    study_id BIGINT NOT NULL,
    position BIGINT NOT NULL,
    inspection_id BIGINT NOT NULL,
    CONSTRAINT pk_study_part PRIMARY KEY (study_id, position),
    CONSTRAINT uq_study_part_study_id_inspection_id UNIQUE (study_id, inspection_id),
    CONSTRAINT fk_study_part_study_id FOREIGN KEY(study_id) REFERENCES study (id) ON DELETE CASCADE,
    CONSTRAINT fk_study_part_inspection_id FOREIGN KEY(inspection_id) REFERENCES inspection (id) ON DELETE CASCADE
);

CREATE INDEX ix_study_part_inspection_id ON study_part (inspection_id);

CREATE TABLE explanation_region (
    explanation_id BIGINT NOT NULL,
    position BIGINT NOT NULL,
    top_px BIGINT NOT NULL,
    left_px BIGINT NOT NULL,
    height_px BIGINT NOT NULL,
    width_px BIGINT NOT NULL,
    area_px BIGINT NOT NULL,
    peak DOUBLE PRECISION NOT NULL,
    mass DOUBLE PRECISION NOT NULL,
    CONSTRAINT pk_explanation_region PRIMARY KEY (explanation_id, position),
    CONSTRAINT fk_explanation_region_explanation_id FOREIGN KEY(explanation_id) REFERENCES explanation (id) ON DELETE CASCADE
);

CREATE TABLE explanation_tile (
    explanation_id BIGINT NOT NULL,
    position BIGINT NOT NULL,
    tile_index BIGINT NOT NULL,
    top_px BIGINT NOT NULL,
    left_px BIGINT NOT NULL,
    height_px BIGINT NOT NULL,
    width_px BIGINT NOT NULL,
    status TEXT NOT NULL,
    scores JSONB NOT NULL,
    baseline_score DOUBLE PRECISION,
    score_spread DOUBLE PRECISION,
    CONSTRAINT pk_explanation_tile PRIMARY KEY (explanation_id, position),
    CONSTRAINT ck_explanation_tile_status CHECK (status IN ('explained', 'no_evidence', 'not_explained', 'failed')),
    CONSTRAINT fk_explanation_tile_explanation_id FOREIGN KEY(explanation_id) REFERENCES explanation (id) ON DELETE CASCADE
);

CREATE TABLE review_request_key (
    key TEXT NOT NULL,
    review_id BIGINT NOT NULL,
    CONSTRAINT pk_review_request_key PRIMARY KEY (key),
    CONSTRAINT fk_review_request_key_review_id FOREIGN KEY(review_id) REFERENCES review (id) ON DELETE CASCADE
);

CREATE INDEX ix_review_request_key_review_id ON review_request_key (review_id);

CREATE TABLE study_task (
    id BIGSERIAL NOT NULL,
    study_id BIGINT NOT NULL,
    appraiser TEXT NOT NULL,
    trial BIGINT NOT NULL,
    run_order BIGINT NOT NULL,
    part_position BIGINT NOT NULL,
    CONSTRAINT pk_study_task PRIMARY KEY (id),
    CONSTRAINT fk_study_task_study_id_part_position FOREIGN KEY(study_id, part_position) REFERENCES study_part (study_id, position) ON DELETE CASCADE,
    CONSTRAINT uq_study_task_study_id_appraiser_trial_run_order UNIQUE (study_id, appraiser, trial, run_order)
);

CREATE TABLE block_map (
    explanation_id BIGINT NOT NULL,
    tile_position BIGINT NOT NULL,
    position BIGINT NOT NULL,
    tensor TEXT NOT NULL,
    channels BIGINT NOT NULL,
    positive_channels BIGINT NOT NULL,
    kept_channels BIGINT NOT NULL,
    constant_channels BIGINT NOT NULL,
    beta DOUBLE PRECISION,
    threshold DOUBLE PRECISION,
    score_min DOUBLE PRECISION,
    score_max DOUBLE PRECISION,
    otsu_threshold DOUBLE PRECISION,
    note TEXT NOT NULL,
    predicted_scores BIGINT DEFAULT 0 NOT NULL,
    grid JSONB,
    sums_blob_id BIGINT,
    CONSTRAINT pk_block_map PRIMARY KEY (explanation_id, tile_position, position),
    CONSTRAINT fk_block_map_explanation_id_tile_position FOREIGN KEY(explanation_id, tile_position) REFERENCES explanation_tile (explanation_id, position) ON DELETE CASCADE,
    CONSTRAINT fk_block_map_sums_blob_id FOREIGN KEY(sums_blob_id) REFERENCES map_blob (id)
);

CREATE INDEX ix_block_map_sums_blob_id ON block_map (sums_blob_id);

CREATE TABLE study_rating (
    id BIGSERIAL NOT NULL,
    task_id BIGINT NOT NULL,
    verdict TEXT NOT NULL,
    answered_by TEXT NOT NULL,
    answered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_study_rating PRIMARY KEY (id),
    CONSTRAINT ck_study_rating_verdict CHECK (verdict IN ('OK', 'NG', 'UNSURE')),
    CONSTRAINT fk_study_rating_task_id FOREIGN KEY(task_id) REFERENCES study_task (id) ON DELETE CASCADE
);

CREATE INDEX ix_study_rating_task_id ON study_rating (task_id);

-- Ledger and reviews are append-only. One statement per paragraph.
CREATE OR REPLACE FUNCTION inspect_xai_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- A review goes with its inspection, when retention takes the rows, and at no other time.
CREATE OR REPLACE FUNCTION inspect_xai_goes_with_inspection() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM inspection WHERE id = OLD.inspection_id) THEN
        RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END $$;

CREATE OR REPLACE TRIGGER ledger_event_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_event
FOR EACH STATEMENT EXECUTE FUNCTION inspect_xai_append_only();

CREATE OR REPLACE TRIGGER review_no_update BEFORE UPDATE OR TRUNCATE ON review
FOR EACH STATEMENT EXECUTE FUNCTION inspect_xai_append_only();

CREATE OR REPLACE TRIGGER review_no_delete BEFORE DELETE ON review
FOR EACH ROW EXECUTE FUNCTION inspect_xai_goes_with_inspection();
