-- Read by those who release a lot: how its parts were judged, and what is still to be looked at.
CREATE VIEW lot_quality AS
SELECT
    product,
    lot,
    count(DISTINCT serial) AS parts,
    count(*) AS inspections,
    sum(CASE WHEN verdict = 'OK' THEN 1 ELSE 0 END) AS ok,
    sum(CASE WHEN verdict = 'NG' THEN 1 ELSE 0 END) AS ng,
    sum(CASE WHEN verdict = 'UNSURE' THEN 1 ELSE 0 END) AS unsure,
    sum(CASE WHEN verdict <> 'OK' AND review_decision IS NULL THEN 1 ELSE 0 END) AS flagged_without_review,
    sum(CASE WHEN model_status <> 'approved' THEN 1 ELSE 0 END) AS by_unapproved_model,
    min(inspected_at) AS first_inspected_at,
    max(inspected_at) AS last_inspected_at
FROM inspection_overview
GROUP BY product, lot;
