-- Read by auditors: which model judged from when to when, how many parts, and how many of them before its approval.
CREATE VIEW model_use AS
SELECT
    m.fingerprint,
    m.name,
    m.version,
    m.status,
    m.status_at,
    m.status_by,
    m.registered_at,
    count(i.id) AS inspections,
    sum(CASE WHEN i.model_status <> 'approved' THEN 1 ELSE 0 END) AS inspections_unapproved,
    min(i.inspected_at) AS first_inspected_at,
    max(i.inspected_at) AS last_inspected_at
FROM model m
LEFT JOIN inspection i ON i.model_id = m.id
GROUP BY m.fingerprint, m.name, m.version, m.status, m.status_at, m.status_by, m.registered_at;
