-- Read by the quality department's own tools: one row per inspection, everything flat, the newest answer beside it.
-- inspected_on is the day in UTC on SQLite and in the session's time zone on PostgreSQL.
CREATE VIEW inspection_overview AS
SELECT
    i.id AS inspection_id,
    substr(CAST(i.inspected_at AS TEXT), 1, 10) AS inspected_on,
    i.inspected_at,
    c.captured_at,
    c.sha256,
    c.file_name,
    c.archived_to,
    p.serial,
    l.code AS lot,
    d.name AS product,
    c.line,
    c.station,
    c.camera,
    c.view,
    c.shift,
    c.identity_source AS known_from,
    i.verdict,
    i.reason,
    i.label,
    i.score,
    i.threshold,
    i.predicted_label,
    i.predicted_score,
    m.fingerprint,
    m.name AS model_name,
    m.version AS model_version,
    i.model_status,
    o.version AS policy_version,
    i.failure_kind,
    i.duration_ms,
    e.status AS explanation_status,
    e.method,
    e.forward_passes AS passes,
    e.coverage AS support_share,
    e.energy_in_roi,
    e.drop_percent,
    e.drop_percent_random,
    e.increase_percent,
    e.increase_percent_random,
    e.deletion_percent,
    e.deletion_percent_random,
    r.decision AS review_decision,
    r.verdict AS reviewed_verdict,
    r.true_label,
    r.reviewer,
    r.reviewed_at
FROM inspection i
JOIN capture c ON c.id = i.capture_id
JOIN part p ON p.id = c.part_id
JOIN lot l ON l.id = p.lot_id
JOIN product d ON d.id = l.product_id
JOIN model m ON m.id = i.model_id
JOIN policy o ON o.id = i.policy_id
LEFT JOIN explanation e ON e.inspection_id = i.id
LEFT JOIN review r ON r.id = (SELECT max(n.id) FROM review n WHERE n.inspection_id = i.id);
