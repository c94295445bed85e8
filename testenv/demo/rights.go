package main

// What a database administrator does once on each server, as a superuser. The
// names and rights are those of the README.

// sourceRights lets Vault make logins that read the source.
const sourceRights = `
CREATE ROLE dbops_inspect NOLOGIN;                       -- sees catalogs, no rows
CREATE ROLE dbops_read NOLOGIN BYPASSRLS;                -- reads every row
GRANT pg_read_all_data TO dbops_read;
CREATE ROLE dbops_vault LOGIN CREATEROLE PASSWORD %s;    -- Vault's own login
GRANT dbops_inspect, dbops_read TO dbops_vault WITH ADMIN OPTION;
GRANT SELECT ON LARGE OBJECT 424242 TO dbops_read;`

// targetRights lets it make logins that write databases there, and nothing else.
const targetRights = `
CREATE ROLE dbops_inspect NOLOGIN;
CREATE ROLE dbops_owner NOLOGIN CREATEDB;                -- owns what clones write
GRANT pg_signal_backend TO dbops_owner;                  -- ends sessions in the way of a switch
CREATE ROLE dbops_vault LOGIN CREATEROLE PASSWORD %s;
GRANT dbops_inspect, dbops_owner TO dbops_vault WITH ADMIN OPTION;`

// Creation statements of the roles logins are made from.
const (
	inspectStatement = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' CONNECTION LIMIT 4 IN ROLE dbops_inspect;`
	readStatement    = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE dbops_read; ALTER ROLE "{{name}}" SET role TO dbops_read;`
	writeStatement   = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE dbops_owner; ALTER ROLE "{{name}}" SET role TO dbops_owner;`
)
