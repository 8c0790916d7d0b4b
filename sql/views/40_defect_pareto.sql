-- Read by process engineers: which defects are found where, and how many of the findings people took back.
CREATE VIEW defect_pareto AS
SELECT
    product,
    line,
    station,
    label,
    count(*) AS found,
    sum(CASE WHEN reviewed_verdict = 'OK' THEN 1 ELSE 0 END) AS taken_back,
    avg(score) AS mean_score,
    max(inspected_at) AS last_found_at
FROM inspection_overview
WHERE verdict = 'NG'
GROUP BY product, line, station, label;
