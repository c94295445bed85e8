package parity_test

const createLogin = `CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';`

// roleFields is a good role, changed by the fields given.
func roleFields(changes fields) fields {
	return changed(fields{"db_name": "pg", "creation_statements": createLogin}, changes)
}

func roleRows() []row {
	data := []string{
		"data.db_name", "data.creation_statements", "data.revocation_statements", "data.rollback_statements",
		"data.renew_statements", "data.default_ttl", "data.max_ttl", "data.credential_type", "data.credential_config",
	}
	return []row{
		list("roles: list when there is none", "roles"),
		get("roles: read a missing one", "roles/none"),
		del("roles: delete a missing one", "roles/none"),
		put("roles: nothing given", "roles/app", fields{}),
		put("roles: no db_name", "roles/app", roleFields(fields{"db_name": nil})),
		put("roles: empty db_name", "roles/app", roleFields(fields{"db_name": ""})),
		put("roles: db_name of another kind", "roles/app", roleFields(fields{"db_name": []string{"a", "b"}})),
		put("roles: db_name that is missing", "roles/orphan", roleFields(fields{"db_name": "nosuch"})),
		get("roles: read one without a connection", "roles/orphan", data...),
		put("roles: a good one", "roles/app", roleFields(nil)),
		get("roles: read it", "roles/app", data...),
		list("roles: list them", "roles"),
		list("roles: list with a slash", "roles/"),
		{name: "roles: POST writes too", method: "POST", path: "roles/app", body: roleFields(nil)},
		{name: "roles: PATCH is not allowed", method: "PATCH", path: "roles/app", body: fields{"max_ttl": 5}},
		{name: "roles: a write without a body", method: "PUT", path: "roles/app"},
		put("roles: an empty body changes nothing", "roles/app", fields{}),
		get("roles: nothing was changed", "roles/app", data...),

		put("roles: ttls as numbers", "roles/app", fields{"default_ttl": 600, "max_ttl": 3600}),
		get("roles: ttls were numbers", "roles/app", data...),
		put("roles: ttls as durations", "roles/app", fields{"default_ttl": "15m", "max_ttl": "2h"}),
		get("roles: ttls were durations", "roles/app", data...),
		put("roles: ttls as text of a number", "roles/app", fields{"default_ttl": "900", "max_ttl": "7200"}),
		get("roles: ttls were text", "roles/app", data...),
		put("roles: ttls in days", "roles/app", fields{"default_ttl": "1d", "max_ttl": "2d"}),
		get("roles: ttls were days", "roles/app", data...),
		put("roles: ttl as a fraction", "roles/app", fields{"default_ttl": "1.5h"}),
		put("roles: default_ttl no duration", "roles/app", fields{"default_ttl": "soon"}),
		put("roles: max_ttl no duration", "roles/app", fields{"max_ttl": []int{1}}),
		put("roles: default_ttl negative", "roles/app", fields{"default_ttl": -5}),
		put("roles: max_ttl negative", "roles/app", fields{"max_ttl": "-1h"}),
		put("roles: default_ttl above max_ttl", "roles/app", fields{"default_ttl": "5h", "max_ttl": "1h"}),
		put("roles: ttls none", "roles/app", fields{"default_ttl": 0, "max_ttl": 0}),
		get("roles: ttls of zero", "roles/app", data...),
		put("roles: default_ttl empty", "roles/app", fields{"default_ttl": ""}),

		put("roles: statements as lists", "roles/app", fields{
			"creation_statements": []string{createLogin, "SELECT 1"}, "revocation_statements": []string{`DROP ROLE "{{name}}"`},
			"rollback_statements": []string{"SELECT 1"}, "renew_statements": []string{"SELECT 1"},
		}),
		get("roles: statements were lists", "roles/app", data...),
		put("roles: statements as text", "roles/app", fields{
			"creation_statements": createLogin + " SELECT 1;", "revocation_statements": `DROP ROLE "{{name}}";`,
			"rollback_statements": "SELECT 1, 2;", "renew_statements": "SELECT 1; SELECT 2;",
		}),
		get("roles: statements were text", "roles/app", data...),
		put("roles: one merged field", "roles/app", fields{"revocation_statements": []string{}}),
		get("roles: the others stay", "roles/app", data...),
		put("roles: creation_statements an object", "roles/app", fields{"creation_statements": fields{"a": 1}}),
		put("roles: creation_statements a number", "roles/app", fields{"creation_statements": 5}),
		put("roles: creation_statements empty", "roles/bare", fields{"db_name": "pg", "creation_statements": ""}),
		get("roles: creation_statements of nothing", "roles/bare", data...),
		put("roles: only db_name", "roles/bare2", fields{"db_name": "pg"}),
		get("roles: only db_name given", "roles/bare2", data...),

		put("roles: credential_type password", "roles/app", fields{"credential_type": "password"}),
		put("roles: credential_type empty", "roles/app", fields{"credential_type": ""}),
		put("roles: credential_type unknown", "roles/app", fields{"credential_type": "guess"}),
		put("roles: credential_type of another kind", "roles/app", fields{"credential_type": []string{"a", "b"}}),
		put("roles: credential_config", "roles/app", fields{"credential_config": fields{"password_policy": "long"}}),
		get("roles: credential_config is kept", "roles/app", data...),
		put("roles: credential_config as text", "roles/app", fields{"credential_config": "password_policy=short"}),
		get("roles: credential_config was text", "roles/app", data...),
		put("roles: credential_config unknown key", "roles/app", fields{"credential_config": fields{"colour": "green"}}),
		put("roles: credential_config of another kind", "roles/app", fields{"credential_config": 5}),
		put("roles: credential_config none", "roles/app", fields{"credential_config": fields{}}),
		get("roles: credential_config cleared", "roles/app", data...),
		put("roles: credential_config again", "roles/app", fields{"credential_config": fields{"password_policy": "long"}}),
		put("roles: a field nobody knows", "roles/app", fields{"favourite_colour": "green"}),
		get("roles: a field nobody knows is dropped", "roles/app", data...),
		put("roles: db_name changed", "roles/orphan", fields{"db_name": "pg"}),
		get("roles: db_name was changed", "roles/orphan", data...),

		put("roles: name with a dot", "roles/a.b", roleFields(nil)),
		put("roles: name with capitals", "roles/UPPER_1", roleFields(nil)),
		put("roles: name beginning with a dash", "roles/-a", roleFields(nil)),
		put("roles: name with a space", "roles/a%20b", roleFields(nil)),
		put("roles: name with a slash", "roles/a/b", roleFields(nil)),
		put("roles: name with an at", "roles/a@b", roleFields(nil)),
		list("roles: list all", "roles"),
		del("roles: delete", "roles/UPPER_1"),
		del("roles: delete again", "roles/UPPER_1"),
		get("roles: read what was deleted", "roles/UPPER_1"),
		del("roles: delete a.b", "roles/a.b"),
		del("roles: delete orphan", "roles/orphan"),
		list("roles: list what is left", "roles"),
	}
}
