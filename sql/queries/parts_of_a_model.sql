-- From a model's fingerprint to the parts it judged: for a recall. Put the fingerprint, or its beginning, in the first
-- line. (From the hash of the .onnx file: inspect-xai find --model-file.)
WITH asked AS (SELECT 'ffff' AS fingerprint)
SELECT v.product, v.lot, v.serial, v.verdict, v.label, v.inspected_at, v.reviewed_verdict
FROM inspection_overview v
JOIN asked ON substr(v.fingerprint, 1, length(asked.fingerprint)) = asked.fingerprint
ORDER BY v.product, v.lot, v.serial, v.inspected_at;
