-- Read by those who answer for the explanations: what they cost, how often there was none, and whether they lie on the part.
CREATE VIEW explanation_quality AS
SELECT
    fingerprint,
    model_name,
    model_version,
    method,
    explanation_status,
    count(*) AS explanations,
    avg(passes) AS mean_passes,
    avg(support_share) AS mean_support_share,
    avg(energy_in_roi) AS mean_energy_in_roi
FROM inspection_overview
WHERE explanation_status IS NOT NULL
GROUP BY fingerprint, model_name, model_version, method, explanation_status;
