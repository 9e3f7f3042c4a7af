-- The functions of PostgreSQL that a statement may call and still be proven to read only, one name a line:
--     psql -X -A -t -f proxy/src/routing/functions.sql > proxy/src/routing/functions.txt
-- run against a fresh cluster of PostgreSQL 15, the oldest release whose functions all later ones have.
--
-- A name is taken if every function of that name in pg_catalog is IMMUTABLE or STABLE and callable from SQL. Left out are
-- those that answer for one server or one session (its statistics, backends, snapshots, transaction ids, files), because
-- a client that asks means the primary; and those that fail during recovery.
SELECT proname COLLATE "C"
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace
  AND proname !~ '^(pg_stat_|pg_event_trigger_|pg_walfile_name|txid_|inet_(client|server)_|currtid)'
  AND proname !~ '(_validator|snapshot|_xact_id|_xact_id_if_assigned)$'
  AND proname !~ '^pg_(snapshot|visible)_'
  AND proname <> ALL ('{current_setting,pg_available_extension_versions,pg_available_extensions,pg_backend_pid,
        pg_conf_load_time,pg_config,pg_cursor,pg_extension_update_paths,pg_get_replication_slots,pg_is_other_temp_schema,
        pg_listening_channels,pg_my_temp_schema,pg_postmaster_start_time,pg_prepared_statement,pg_relation_filepath,
        pg_settings_get_flags,pg_show_all_settings,pg_tablespace_databases,pg_tablespace_location,pg_trigger_depth}'::name[])
GROUP BY proname
HAVING bool_and(provolatile IN ('i', 's'))
   AND bool_or(prorettype <> ALL ('{internal,cstring,trigger,event_trigger,language_handler,fdw_handler,index_am_handler,
        tsm_handler,table_am_handler}'::regtype[])
     AND NOT proargtypes::oid[] && '{internal,cstring}'::regtype[]::oid[])
ORDER BY 1;
