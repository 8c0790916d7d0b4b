-- Read by those who answer for the explanations: what they cost, how often there was none, whether they lie on the part,
-- and whether they are truer to the network than blobs thrown at random.
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
    avg(energy_in_roi) AS mean_energy_in_roi,
    avg(drop_percent) AS mean_drop_percent,
    avg(drop_percent_random) AS mean_drop_percent_random,
    avg(increase_percent) AS mean_increase_percent,
    avg(increase_percent_random) AS mean_increase_percent_random,
    avg(deletion_percent) AS mean_deletion_percent,
    avg(deletion_percent_random) AS mean_deletion_percent_random
FROM inspection_overview
WHERE explanation_status IS NOT NULL
GROUP BY fingerprint, model_name, model_version, method, explanation_status;
