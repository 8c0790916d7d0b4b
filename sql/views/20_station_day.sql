-- Read by shift leads and the morning meeting: what each station did on each day and shift, and what people said of it.
-- An escape is a defect passed as OK, overkill a good part rejected; both count what people answered, not an estimate.
CREATE VIEW station_day AS
SELECT
    inspected_on,
    product,
    line,
    station,
    shift,
    count(*) AS inspections,
    sum(CASE WHEN verdict = 'OK' THEN 1 ELSE 0 END) AS ok,
    sum(CASE WHEN verdict = 'NG' THEN 1 ELSE 0 END) AS ng,
    sum(CASE WHEN verdict = 'UNSURE' THEN 1 ELSE 0 END) AS unsure,
    sum(CASE WHEN failure_kind <> '' THEN 1 ELSE 0 END) AS failed,
    sum(CASE WHEN review_decision IS NOT NULL THEN 1 ELSE 0 END) AS reviewed,
    sum(CASE WHEN verdict = 'NG' AND reviewed_verdict = 'OK' THEN 1 ELSE 0 END) AS overkill,
    sum(CASE WHEN verdict = 'OK' AND reviewed_verdict = 'NG' THEN 1 ELSE 0 END) AS escapes,
    avg(duration_ms) AS mean_duration_ms
FROM inspection_overview
GROUP BY inspected_on, product, line, station, shift;
