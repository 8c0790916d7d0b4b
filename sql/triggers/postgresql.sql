-- Ledger and reviews are append-only. One statement per paragraph.
CREATE OR REPLACE FUNCTION inspect_xai_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- A review goes with its inspection, when retention takes the rows, and at no other time.
CREATE OR REPLACE FUNCTION inspect_xai_goes_with_inspection() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM inspection WHERE id = OLD.inspection_id) THEN
        RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN OLD;
END $$;

CREATE OR REPLACE TRIGGER ledger_event_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_event
FOR EACH STATEMENT EXECUTE FUNCTION inspect_xai_append_only();

CREATE OR REPLACE TRIGGER review_no_update BEFORE UPDATE OR TRUNCATE ON review
FOR EACH STATEMENT EXECUTE FUNCTION inspect_xai_append_only();

CREATE OR REPLACE TRIGGER review_no_delete BEFORE DELETE ON review
FOR EACH ROW EXECUTE FUNCTION inspect_xai_goes_with_inspection();
