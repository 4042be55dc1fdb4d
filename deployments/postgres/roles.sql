-- Who may do what in the platform's database. Run it as the server's superuser, as often as you like:
--
--     psql --set ON_ERROR_STOP=1 --dbname dlc_platform --file roles.sql
--
-- `platform` owns the catalogue (schema dlc), `dagster` Dagster's own storage (schema dagster), and `analyst` reads the
-- catalogue. The webserver, which people reach, knows the password of `dagster` alone. After `dlc-platform restore` all
-- belongs to whoever restored: run it again. It sets no passwords; without one, nobody logs in.

do $$
declare
    role text;
begin
    foreach role in array array['platform', 'dagster', 'analyst'] loop
        if not exists (select from pg_roles where rolname = role) then
            execute format('create role %I', role);
        end if;
        execute format('alter role %I login nosuperuser nocreatedb nocreaterole noreplication nobypassrls', role);
        execute format('revoke all on database %I from %I', current_database(), role);
        execute format('grant connect on database %I to %I', current_database(), role);
    end loop;
    -- Or everybody could make temporary tables, and connect.
    execute format('revoke all on database %I from public', current_database());
    -- dagster-postgres knows no schemas: its tables are where its search path leads.
    execute format('alter role dagster in database %I set search_path = dagster', current_database());
    execute format('alter role analyst in database %I set search_path = dlc', current_database());
    -- What `analyst` may not do is decided by its rights; these only keep a mistake from holding up the lab.
    execute format('alter role analyst in database %I set default_transaction_read_only = on', current_database());
    execute format('alter role analyst in database %I set statement_timeout = ''5min''', current_database());
    execute format('alter role analyst in database %I set idle_in_transaction_session_timeout = ''10min''',
                   current_database());
end $$;

revoke all on schema public from public;
create schema if not exists dlc;
create schema if not exists dagster;

do $$
declare
    relation record;
begin
    alter schema dlc owner to platform;
    alter schema dagster owner to dagster;
    for relation in
        select c.oid::regclass as name, case n.nspname when 'dlc' then 'platform' else 'dagster' end as owner
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in ('dlc', 'dagster') and c.relkind in ('r', 'p', 'v', 'm', 'S')
            -- The sequence of a column follows its table.
            and not exists (
                select from pg_depend d
                where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')
                    and c.relkind = 'S'
            )
    loop
        execute format('alter table %s owner to %I', relation.name, relation.owner);
    end loop;
end $$;

-- `backup` reads both schemas, with the rights of `platform`.
grant usage on schema dagster to platform;
grant select on all tables in schema dagster to platform;
grant select on all sequences in schema dagster to platform;
alter default privileges for role dagster in schema dagster grant select on tables to platform;
alter default privileges for role dagster in schema dagster grant select on sequences to platform;

grant usage on schema dlc to analyst;
grant select on all tables in schema dlc to analyst;
alter default privileges for role platform in schema dlc grant select on tables to analyst;
