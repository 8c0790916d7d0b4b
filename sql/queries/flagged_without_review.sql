-- What was flagged and nobody answered yet, oldest first?
SELECT inspection_id, inspected_at, serial, lot, product, line, station, verdict, reason, label, score, threshold
FROM inspection_overview
WHERE verdict <> 'OK' AND review_decision IS NULL
ORDER BY inspected_at
LIMIT 500;
