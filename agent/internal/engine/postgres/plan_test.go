package postgres

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

var update = flag.Bool("update", false, "write golden files")

func sample() (from, to inspection) {
	from = inspection{
		Format: 1, Major: 15, Exists: true,
		Identity: wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "7001", Database: "shop", DatabaseID: "16384", Version: "15.8", TLS: true},
		Database: database{Owner: "app_owner", Encoding: "UTF8", Collate: "C.UTF-8", CType: "C.UTF-8", Provider: "libc", Bytes: 12345},
		Tables: []Table{
			{Schema: "app", Name: "customer", Kind: "table", Rows: 100, Bytes: 8192, Columns: []Column{
				{Name: "id", Type: "bigint", NotNull: true, Identity: "always"},
				{Name: "name", Type: "character varying(80)"},
				{Name: "tags", Type: "text[]"},
				{Name: "price", Type: "numeric(10,2)", Default: literalDigest("0")},
			}},
			{Schema: "app", Name: "event", Kind: "partitioned", Columns: []Column{{Name: "at", Type: "date"}}},
			{Schema: "app", Name: "event_1", Kind: "table", Partition: true, Parents: []string{"app.event"}, Columns: []Column{{Name: "at", Type: "date"}}},
			{Schema: "app", Name: "moods", Kind: "table", RowSecurity: true, Columns: []Column{{Name: "mood", Type: "app.mood"}}},
			{Schema: "app", Name: "nothing", Kind: "table"},
		},
		Objects: []Object{
			{Kind: "grant", Identity: "relation app.customer", Digest: "aa", Roles: []string{"reader"}},
			{Kind: "policy", Identity: "app.moods.own", Digest: "bb", Roles: []string{"reader"}},
			{Kind: "view", Identity: "app.names", Owner: "app_owner", Digest: "cc"},
		},
		Extensions: []Extension{{Name: "citext", Schema: "public", Version: "1.6"}, {Name: "hstore", Schema: "public", Version: "1.1"}},
		NotCopied:  []Loss{{Kind: "publication", Name: "p", Why: "replication is not copied"}},
	}
	to = inspection{
		Format: 1, Major: 15, Exists: true,
		Identity:  wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "7002", Database: "shop", DatabaseID: "5", Version: "15.8"},
		Database:  database{Owner: "dbops_owner", Encoding: "UTF8"},
		Available: []available{{Name: "citext", Default: "1.6", Versions: []string{"1.5", "1.6"}, Trusted: true}, {Name: "hstore", Default: "1.8", Versions: []string{"1.8"}, Trusted: true}},
		Roles:     []string{"app_owner", "reader"},
	}
	return from, to
}

func TestPlan_Golden(t *testing.T) {
	for name, given := range map[string]map[string]string{
		"default": nil,
		"keep":    {wire.OptionOwner: "source", wire.OptionACL: "keep", wire.OptionJobs: "4"},
	} {
		from, to := sample()
		made, err := plan(given, &from, &to)
		require.NoError(t, err)
		text, err := json.MarshalIndent(made, "", "  ")
		require.NoError(t, err)
		path := "testdata/plan_" + name + ".json"
		if *update {
			require.NoError(t, os.WriteFile(path, append(text, '\n'), 0o644))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, string(want), string(text)+"\n")
		var shape Shape
		require.NoError(t, json.Unmarshal(made.Shape, &shape))
		require.Equal(t, 3+1, shape.copied())
	}
}

func TestPlan_Refusals(t *testing.T) {
	for name, c := range map[string]struct {
		change func(from, to *inspection)
		given  map[string]string
		code   wire.Code
	}{
		"same database":      {func(from, to *inspection) { to.Identity = from.Identity }, nil, wire.CodeSameDatabase},
		"same by other name": {func(from, to *inspection) { to.Identity.Server = from.Identity.Server }, nil, wire.CodeSameDatabase},
		"no identity":        {func(from, _ *inspection) { from.Identity.Server = "" }, nil, wire.CodeUnsupported},
		"exists":             {nil, map[string]string{wire.OptionReplace: "false"}, wire.CodeConflict},
		"template":           {func(_, to *inspection) { to.Database.Template = true }, nil, wire.CodeConflict},
		"older target":       {func(_, to *inspection) { to.Major = 14 }, nil, wire.CodeUnsupported},
		"no extension":       {func(_, to *inspection) { to.Available = nil }, nil, wire.CodeUnsupported},
		"no role of policy":  {func(_, to *inspection) { to.Roles = []string{"app_owner"} }, nil, wire.CodeUnsupported},
		"no owner":           {func(_, to *inspection) { to.Roles = []string{"reader"} }, map[string]string{wire.OptionOwner: "source"}, wire.CodeUnsupported},
		"hash of an enum":    {func(from, _ *inspection) { from.Tables[2].UnsafeHash = true }, nil, wire.CodeUnsupported},
		"unknown option":     {nil, map[string]string{"speed": "fast"}, wire.CodeInvalid},
		"bad option":         {nil, map[string]string{wire.OptionJobs: "17"}, wire.CodeInvalid},
		"bad owner":          {nil, map[string]string{wire.OptionOwner: "me"}, wire.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := sample()
			if c.change != nil {
				c.change(&from, &to)
			}
			_, err := plan(c.given, &from, &to)
			var e *operation.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.code, e.Code)
			require.Equal(t, wire.StepPlan, e.Step)
		})
	}
}

func TestBinarySafe(t *testing.T) {
	for name, safe := range map[string]bool{
		"integer": true, "character varying(10)": true, "numeric(10,2)": true, "timestamp(3) with time zone": true, "text[]": true, "bit varying(9)": true,
		"app.mood": false, "regclass": false, "public.text": false, "oid": false, "public.citext": false, "money": false, "xml": false, "record": false, ")(": false,
	} {
		require.Equal(t, safe, binarySafe(name), name)
	}
}

// Whatever stands in an inspection, Plan answers or refuses, the same each time.
func FuzzPlan(f *testing.F) {
	from, to := sample()
	a, err := json.Marshal(from)
	require.NoError(f, err)
	b, err := json.Marshal(to)
	require.NoError(f, err)
	f.Add(a, b, "source")
	f.Add([]byte(`{"format":1}`), []byte(`{"format":1}`), "")
	f.Fuzz(func(t *testing.T, source, target []byte, owner string) {
		e := New(Options{})
		given := map[string]string{wire.OptionOwner: owner}
		first, err := e.Plan(wire.KindClone, given, source, target)
		second, again := e.Plan(wire.KindClone, given, source, target)
		if err != nil {
			var decided *operation.Error
			if !errors.As(err, &decided) || !decided.Code.Valid() || again == nil {
				t.Fatalf("%v, then %v", err, again)
			}
			return
		}
		if string(first.Shape) != string(second.Shape) {
			t.Fatal("not deterministic")
		}
		var head wire.ShapeHead
		if err := json.Unmarshal(first.Shape, &head); err != nil {
			t.Fatal(err)
		}
	})
}
