package testenv_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// A server keeps its data and port over a stop, and writes the binary log. It is of the
// version that is told.
func TestMariaDB(t *testing.T) {
	t.Parallel()
	m := testenv.MariaDB(t, testenv.MariaDBOptions{Conf: []string{"max_connections=23"}})
	part, product := testenv.PartMariaDB, "MariaDB"
	if m.MySQL {
		part, product = testenv.PartMySQL, "MySQL"
	}
	requireTold(t, part, product, m.Exec("", "SELECT @@version"))
	require.Equal(t, "23\t1", m.Exec("", "SELECT @@max_connections, @@log_bin"))
	m.Exec("", "CREATE DATABASE shop; CREATE TABLE shop.t (id int); INSERT INTO shop.t VALUES (1), (2)")
	m.Stop()
	m.Start()
	require.Equal(t, "2", m.Exec("shop", "SELECT count(*) FROM t"))
}
