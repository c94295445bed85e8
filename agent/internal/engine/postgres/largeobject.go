package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/zeebo/xxh3"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	// objectChunk is how much of a large object is read at once, in bytes.
	objectChunk = 256 << 10
	// objectBatch is how many are asked for at once; their rows are streamed.
	objectBatch = 16
	// objectPage is how many ids are held in memory.
	objectPage = 10_000
)

// planLargeObjects adds the large objects: one reader, by way of the keeper's
// session, and one that reads the target again.
func (f *filling) planLargeObjects() {
	if f.from.LargeObjects == 0 {
		return
	}
	var moved tally
	move := f.graph.add(&task{pool: poolCopy, weight: f.from.LargeObjects * 4096, run: func(ctx context.Context, _ int) error {
		var err error
		if moved, err = f.copyLargeObjects(ctx); err != nil {
			return fault(wire.StepCopy, wire.Source, "copy the large objects", err)
		}
		return f.copied(ctx)
	}})
	f.copies++
	check := f.graph.add(&task{pool: poolVerify, weight: f.from.LargeObjects * 4096, run: func(ctx context.Context, _ int) error {
		if err := f.beginVerify(ctx); err != nil {
			return err
		}
		conn, err := f.open(ctx, f.target, f.names.staging)
		if err != nil {
			return fault(wire.StepVerify, wire.Target, "connect to the staging database", err)
		}
		found, err := readLargeObjects(ctx, conn, nil, func(int64, int64) error { return nil })
		if err != nil {
			return fault(wire.StepVerify, wire.Target, "read the large objects again", err)
		}
		return f.verified(ctx, operation.TableReport{
			Schema: "pg_catalog", Name: "pg_largeobject", Rows: found.rows, Bytes: found.bytes, Digest: found.hex(),
			SourceRows: moved.rows, SourceDigest: moved.hex(), Match: found == moved,
		})
	}})
	check.after(move)
}

func (f *filling) copyLargeObjects(ctx context.Context) (tally, error) {
	conn, err := f.open(ctx, f.target, f.names.staging)
	if err != nil {
		return tally{}, err
	}
	to := func(err error) error {
		if err != nil {
			return &sideError{wire.Target, err}
		}
		return nil
	}
	if err := to(execute(ctx, conn, "BEGIN")); err != nil {
		return tally{}, err
	}
	moved, err := readLargeObjects(ctx, f.keeper, func(id uint32, offset int64, part []byte) error {
		if offset == 0 {
			_, err := conn.Exec(ctx, "SELECT pg_catalog.lo_from_bytea($1, $2)", pgx.QueryExecModeCacheStatement, id, part)
			return to(err)
		}
		_, err := conn.Exec(ctx, "SELECT pg_catalog.lo_put($1, $2, $3)", pgx.QueryExecModeCacheStatement, id, offset, part)
		return to(err)
	}, f.count)
	if err != nil {
		return tally{}, err
	}
	if err := f.describeLargeObjects(ctx, conn); err != nil {
		return tally{}, err
	}
	return moved, to(execute(ctx, conn, "COMMIT"))
}

// readLargeObjects reads every large object the session sees, in chunks, and
// tallies them: one hash for each, over its id and its content. A hole comes as
// zeros, so that a copy without it is equal.
func readLargeObjects(ctx context.Context, conn *pgx.Conn, each func(id uint32, offset int64, part []byte) error, seen passing) (tally, error) {
	var sum tally
	for after := int64(0); ; {
		rows, err := conn.Query(ctx, "SELECT oid FROM pg_catalog.pg_largeobject_metadata WHERE oid > $1::int8::oid ORDER BY oid LIMIT $2", pgx.QueryExecModeCacheStatement, after, objectPage)
		if err != nil {
			return tally{}, err
		}
		page, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
		if err != nil {
			return tally{}, err
		}
		if len(page) == 0 {
			return sum, nil
		}
		after = int64(page[len(page)-1])
		for len(page) > 0 {
			n := min(objectBatch, len(page))
			if err := readObjectBatch(ctx, conn, page[:n], &sum, each, seen); err != nil {
				return tally{}, err
			}
			page = page[n:]
		}
	}
}

func readObjectBatch(ctx context.Context, conn *pgx.Conn, ids []uint32, sum *tally, each func(uint32, int64, []byte) error, seen passing) error {
	var (
		id   uint32
		part []byte
		long []uint32
	)
	hash := func(id uint32) *xxh3.Hasher128 {
		h := xxh3.New128()
		_, _ = h.Write(binary.LittleEndian.AppendUint32(nil, id)) // never fails
		return h
	}
	pass := func(id uint32, offset int64) error {
		if each != nil {
			if err := each(id, offset, part); err != nil {
				return err
			}
		}
		return seen(0, int64(len(part)))
	}
	rows, err := conn.Query(ctx, "SELECT o, pg_catalog.lo_get(o, 0, $2::int4) FROM pg_catalog.unnest($1::oid[]) o", pgx.QueryExecModeCacheStatement, ids, objectChunk)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, []any{&id, &part}, func() error {
		if err := pass(id, 0); err != nil {
			return err
		}
		if len(part) == objectChunk {
			long = append(long, id)
			return nil
		}
		h := hash(id)
		_, _ = h.Write(part)
		sum.add(h.Sum128(), len(part))
		return seen(1, 0)
	})
	if err != nil {
		return err
	}
	for _, id := range long {
		h, offset := hash(id), int64(0)
		for {
			if err := conn.QueryRow(ctx, "SELECT pg_catalog.lo_get($1, $2::int8, $3::int4)", pgx.QueryExecModeCacheStatement, id, offset, objectChunk).Scan(&part); err != nil {
				return err
			}
			_, _ = h.Write(part)
			if offset > 0 && len(part) > 0 { // the first chunk was passed above
				if err := pass(id, offset); err != nil {
					return err
				}
			}
			offset += int64(len(part))
			if len(part) < objectChunk {
				break
			}
		}
		// tally.add counts bytes as an int, which is 64 bits wide where we run.
		sum.add(h.Sum128(), int(offset))
		if err := seen(1, 0); err != nil {
			return err
		}
	}
	return nil
}

// describeLargeObjects copies comments, and owners and grants by option.
func (f *filling) describeLargeObjects(ctx context.Context, conn *pgx.Conn) error {
	rows, err := f.keeper.Query(ctx, `
SELECT m.oid, pg_catalog.pg_get_userbyid(m.lomowner), coalesce(pg_catalog.obj_description(m.oid, 'pg_largeobject'), ''),
       ARRAY(SELECT pg_catalog.format('%s ON LARGE OBJECT %s TO %s%s', a.privilege_type, m.oid,
               CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
               CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
             FROM pg_catalog.aclexplode(m.lomacl) a WHERE a.grantee <> m.lomowner)
  FROM pg_catalog.pg_largeobject_metadata m
 WHERE $1 OR m.lomacl IS NOT NULL AND $2 OR pg_catalog.obj_description(m.oid, 'pg_largeobject') IS NOT NULL`,
		f.options.keepOwner, f.options.keepACL)
	if err != nil {
		return err
	}
	var (
		id             uint32
		owner, comment string
		grants         []string
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &owner, &comment, &grants}, func() error {
		var statements []string
		if comment != "" {
			statements = append(statements, fmt.Sprintf("COMMENT ON LARGE OBJECT %d IS %s", id, literal(comment)))
		}
		if f.options.keepACL {
			for _, grant := range grants {
				statements = append(statements, "GRANT "+grant)
			}
		}
		if f.options.keepOwner {
			statements = append(statements, fmt.Sprintf("ALTER LARGE OBJECT %d OWNER TO %s", id, quote(owner)))
		}
		if len(statements) == 0 {
			return nil
		}
		if err := execute(ctx, conn, strings.Join(statements, "; ")); err != nil {
			return &sideError{wire.Target, err}
		}
		return nil
	})
	return err
}
