package command

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/vault"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// evidence is the directory an investigator gets. Its files hold what Vault
// answers, unchanged, and SHA256SUMS their digests; nothing in them is a secret
// or a row of a database. The directory and its files are readable for their
// owner only.
type evidence struct {
	responder *vault.Responder
	dir       string
	since     time.Time

	sums       map[string]string // by file
	files      int
	operations int
}

// write reads and writes everything. What cannot be read does not keep the rest
// from being written.
func (e *evidence) write(ctx context.Context) error {
	e.sums = map[string]string{}
	if err := os.Mkdir(e.dir, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return usageError("-out: %s exists; evidence is never written over", e.dir)
		}
		return fmt.Errorf("make directory of evidence: %w", err)
	}
	var errs []error
	state, err := e.responder.State(ctx)
	errs = append(errs, err)
	if err == nil {
		errs = append(errs, e.put("lockdown.json", state))
	}
	for _, kind := range []string{"policies", "connections", "config", "roles", "static-roles", "agents", "revocations"} {
		all, err := e.responder.All(ctx, kind)
		errs = append(errs, err)
		if err == nil {
			errs = append(errs, e.put(kind+".json", all))
		}
	}
	keys, err := e.responder.Read(ctx, "keys") // receipts are verified with them
	errs = append(errs, err)
	if err == nil {
		errs = append(errs, e.put("keys.json", keys))
	}
	errs = append(errs, e.writeOperations(ctx), e.sumUp())
	return errors.Join(errs...)
}

func (e *evidence) writeOperations(ctx context.Context) error {
	found, err := e.responder.Operations(ctx, e.since)
	if err != nil {
		return err
	}
	e.operations = len(found)
	errs := []error{e.put("operations.json", found)}
	entities := map[string]*entityActivity{}
	touched := []touchedTables{}
	for _, content := range found {
		var op wire.Operation
		if err := json.Unmarshal(content, &op); err != nil {
			return fmt.Errorf("read operation: %w", err)
		}
		noteEntity(entities, op)
		tables, err := e.writeOperation(ctx, op)
		errs = append(errs, err)
		touched = append(touched, tables)
	}
	list := slices.SortedFunc(maps.Values(entities), func(x, y *entityActivity) int { return strings.Compare(x.EntityID, y.EntityID) })
	errs = append(errs, e.put("entities.json", list), e.put("tables.json", touched))
	return errors.Join(errs...)
}

// writeOperation writes the texts of one operation and tells its tables.
func (e *evidence) writeOperation(ctx context.Context, op wire.Operation) (touchedTables, error) {
	touched := touchedTables{OperationID: op.ID, Source: op.Source, Target: op.Target, State: op.State, Tables: []touchedTable{}}
	texts := map[string]string{}
	for _, what := range []string{"plan", "report"} {
		text, found, err := e.responder.Text(ctx, op.ID, what)
		if err != nil {
			return touched, err
		}
		if found {
			texts[what] = text
			if err := e.file(what+"-"+op.ID+".json", []byte(text)); err != nil {
				return touched, err
			}
		}
	}
	receipt, err := e.responder.Read(ctx, "all/operations/"+op.ID+"/receipt")
	// One whose operation still has something to be removed is made after that.
	if code := vault.CodeOf(err); err != nil && code != wire.CodeConflict && code != wire.CodeCleanup {
		return touched, err
	}
	if err == nil && receipt != nil {
		if err := e.put("receipt-"+op.ID+".json", receipt); err != nil {
			return touched, err
		}
	}
	touched.read(texts["plan"], texts["report"])
	return touched, nil
}

// entityActivity is what one person asked for.
type entityActivity struct {
	wire.User
	Operations []string           `json:"operations"`
	States     map[wire.State]int `json:"states"`
	Sources    []string           `json:"sources"`
	Targets    []string           `json:"targets"`
	First      time.Time          `json:"first"`
	Last       time.Time          `json:"last"`
}

func noteEntity(entities map[string]*entityActivity, op wire.Operation) {
	who := entities[op.Requester.EntityID]
	if who == nil {
		who = &entityActivity{User: op.Requester, States: map[wire.State]int{}, First: op.CreatedAt, Last: op.CreatedAt}
		entities[op.Requester.EntityID] = who
	}
	who.Operations = append(who.Operations, op.ID)
	who.States[op.State]++
	for list, name := range map[*[]string]string{&who.Sources: op.Source, &who.Targets: op.Target} {
		if !slices.Contains(*list, name) {
			*list = append(*list, name)
		}
	}
	if op.CreatedAt.Before(who.First) {
		who.First = op.CreatedAt
	}
	if op.CreatedAt.After(who.Last) {
		who.Last = op.CreatedAt
	}
}

// touchedTables are the tables of an operation.
type touchedTables struct {
	OperationID string         `json:"operation_id"`
	Source      string         `json:"source"`
	Target      string         `json:"target"`
	State       wire.State     `json:"state"`
	Tables      []touchedTable `json:"tables"`
	// Problem is why they are not known.
	Problem string `json:"problem,omitempty"`
}

// read fills in the tables. What an agent sent may be anything, and must not keep a
// responder from the rest: it stands as it is in its own file.
func (t *touchedTables) read(plan, report string) {
	tables, err := tablesOf(plan, report)
	if err != nil {
		t.Problem = "what the agent sent cannot be read: " + err.Error()
		return
	}
	t.Tables = tables
}

// touchedTable is one of them. Rows are those that were verified at the target;
// without them the operation was only planned or did not come so far.
type touchedTable struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	Rows   *int64 `json:"rows"`
}

// tablesOf lists the tables of a plan, with the rows that a report tells.
func tablesOf(plan, report string) ([]touchedTable, error) {
	tables := []touchedTable{}
	var reported operation.Report
	if report != "" {
		if err := json.Unmarshal([]byte(report), &reported); err != nil {
			return tables, fmt.Errorf("read report: %w", err)
		}
	}
	for _, t := range reported.Tables {
		tables = append(tables, touchedTable{Schema: t.Schema, Name: t.Name, Rows: &t.Rows})
	}
	if len(tables) > 0 || plan == "" {
		return tables, nil
	}
	var planned struct {
		Shape struct {
			Tables []struct {
				Schema    string `json:"schema"`
				Name      string `json:"name"`
				Treatment string `json:"treatment"`
			} `json:"table_list"`
		} `json:"shape"`
	}
	if err := json.Unmarshal([]byte(plan), &planned); err != nil {
		return tables, fmt.Errorf("read plan: %w", err)
	}
	for _, t := range planned.Shape.Tables {
		if t.Treatment != "none" {
			tables = append(tables, touchedTable{Schema: t.Schema, Name: t.Name})
		}
	}
	return tables, nil
}

// put writes a value as indented JSON.
func (e *evidence) put(name string, value any) error {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return e.file(name, append(content, '\n'))
}

func (e *evidence) file(name string, content []byte) error {
	if err := renameio.WriteFile(filepath.Join(e.dir, name), content, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	sum := sha256.Sum256(content)
	e.sums[name] = hex.EncodeToString(sum[:])
	e.files++
	return nil
}

// sumUp writes the digests of all files, in the form sha256sum -c takes.
func (e *evidence) sumUp() error {
	var sums bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(e.sums)) {
		fmt.Fprintf(&sums, "%s  %s\n", e.sums[name], name)
	}
	return e.file("SHA256SUMS", sums.Bytes())
}
