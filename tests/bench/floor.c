/* The least that a FUSE server can do: one file, `disk`, of zeroes, answered out of memory, which reads nothing at all.
 *
 *     floor LENGTH MOUNTPOINT                  stays in the foreground
 *     floor LENGTH MOUNTPOINT FILE SHIFT       answers with what FILE has SHIFT bytes further on, and checks nothing
 *
 * As fast as libfuse is: several threads, each with a descriptor of its own, no locks, no system call but for the answer.
 * What a reader of this file has to wait for is FUSE itself, so that no server on this machine can be faster.
 */

#define _GNU_SOURCE

#define FUSE_USE_VERSION 312

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOT = FUSE_ROOT_ID, DISK, MOST = 1 << 20 };

static off_t length, shift;
static int source = -1;
static __thread char memory[MOST];

static struct stat attributes(fuse_ino_t inode)
{
	struct stat found = { .st_ino = inode, .st_nlink = 1, .st_mode = inode == ROOT ? S_IFDIR | 0555 : S_IFREG | 0444 };

	if (inode == DISK) {
		found.st_size = length;
		found.st_blocks = length / 512;
	}
	return found;
}

static void on_init(void *data, struct fuse_conn_info *connection)
{
	(void)data;
	connection->max_readahead = connection->max_read = MOST;
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = { .ino = DISK, .attr = attributes(DISK), .attr_timeout = 3600, .entry_timeout = 3600 };

	if (parent == ROOT && !strcmp(name, "disk"))
		fuse_reply_entry(request, &entry);
	else
		fuse_reply_err(request, ENOENT);
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
	struct stat found = attributes(inode);

	(void)file;
	fuse_reply_attr(request, &found, 3600);
}

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
	file->keep_cache = 1;
	if (inode == DISK)
		fuse_reply_open(request, file);
	else
		fuse_reply_err(request, EISDIR);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
	off_t left = offset < length ? length - offset : 0;

	(void)inode, (void)file;
	if (size > MOST)
		size = MOST;
	if (left < (off_t)size)
		size = left;
	if (source >= 0 && pread(source, memory, size, offset + shift) != (ssize_t)size)
		fuse_reply_err(request, EIO);
	else
		fuse_reply_buf(request, memory, size);
}

static const struct fuse_lowlevel_ops operations = {
	.init = on_init, .lookup = on_lookup, .getattr = on_getattr, .open = on_open, .read = on_read,
};

int main(int argc, char **argv)
{
	char *words[] = { argv[0], "-oro,allow_other,fsname=floor,max_read=1048576" };
	struct fuse_args options = FUSE_ARGS_INIT(2, words);
	struct fuse_loop_config *loop = fuse_loop_cfg_create();
	struct fuse_session *session;
	int failed = 1;

	if ((argc != 3 && argc != 5) || (length = atoll(argv[1])) <= 0)
		return 2;
	if (argc == 5) {
		shift = atoll(argv[4]);
		if ((source = open(argv[3], O_RDONLY)) < 0)
			return 1;
	}
	fuse_loop_cfg_set_clone_fd(loop, 1);
	session = fuse_session_new(&options, &operations, sizeof(operations), NULL);
	if (session && !fuse_set_signal_handlers(session)) {
		if (!fuse_session_mount(session, argv[2])) {
			failed = fuse_session_loop_mt(session, loop) < 0;
			fuse_session_unmount(session);
		}
		fuse_remove_signal_handlers(session);
		fuse_session_destroy(session);
	}
	fuse_loop_cfg_destroy(loop);
	return failed;
}
