-- Which models judged on a day, and which status they had then? Change the day in the first line.
WITH asked AS (SELECT '2026-11-23' AS inspected_on)
SELECT v.model_name, v.model_version, v.fingerprint, v.model_status, v.line, v.station, count(*) AS inspections
FROM inspection_overview v
JOIN asked ON asked.inspected_on = v.inspected_on
GROUP BY v.model_name, v.model_version, v.fingerprint, v.model_status, v.line, v.station
ORDER BY inspections DESC;
